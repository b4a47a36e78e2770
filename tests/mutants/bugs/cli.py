"""Bugs in `cli`. Each is put back alone: see ../mutant.py."""

from __future__ import annotations

from mutant import one

MUTANTS = (
    one(
        "a checkpoint that comes while another is read gives its name to that one's answers",
        "a review: 18 of 120 answers were another checkpoint's",
        "cli/evaluating.py",
        "        if run.checkpoint() == checkpoint:\n            return",
        "        if loaded:\n            return",
        "tests/cli/test_eval_kept.py::test_a_checkpoint_that_comes_while_another_is_read_is_read_in_its_place",
    ),
    one(
        "the loss of a text ignores threads",
        "issue 14: a sweep of options",
        "cli/evaluating.py",
        "        torch.set_num_threads(settings.threads)\n",
        "        pass\n",
        "tests/cli/test_verb_options.py::test_a_text_is_read_in_windows_with_as_many_threads_as_told",
    ),
    one(
        "chat ignores threads",
        "issue 14: a sweep of options",
        "cli/verbs/chat.py",
        "        torch.set_num_threads(chosen.threads)\n",
        "        pass\n",
        "tests/cli/test_verb_options.py::test_chat_makes_its_engine_as_told",
    ),
    one(
        "a cascade is calibrated on the test problems",
        "issue 19: computation by difficulty",
        "cli/cascading.py",
        '**asked | {"split": "dev", "measured": {}})',
        '**asked | {"measured": {}})',
        "tests/cli/test_answer_verbs.py::test_a_cascade_evaluates_both_models_and_calibrates_on_dev",
    ),
    one(
        "the teacher of a cascade votes, too",
        "issue 19: computation by difficulty",
        "cli/cascading.py",
        'asked | {"votes": False, "params": once, "measured": first.baselines}',
        'asked | {"measured": first.baselines}',
        "tests/cli/test_answer_verbs.py::test_the_student_of_a_cascade_votes_and_the_teacher_answers_once",
    ),
    one(
        "a served cascade ignores sure",
        "issue 19: computation by difficulty",
        "cli/serving.py",
        "cascade.sure if chosen.sure is None else chosen.sure",
        "cascade.sure",
        "tests/serve/test_cascade_server.py::test_options_reach_the_teacher",
    ),
    one(
        "a served cascade takes sure=0 for none",
        "issue 19: computation by difficulty",
        "cli/serving.py",
        "cascade.sure if chosen.sure is None else chosen.sure",
        "chosen.sure or cascade.sure",
        "tests/serve/test_cascade_server.py::test_options_reach_the_teacher",
    ),
)
