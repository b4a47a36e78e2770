"""Bugs in `tasks`. Each is put back alone: see ../mutant.py."""

from __future__ import annotations

from mutant import one

MUTANTS = (
    one(
        "an answer to an unparsable gold is right",
        "open-r1#566",
        "tasks/answer.py",
        "    if not golds:\n        return Verdict.UNGRADED\n",
        "    if not golds:\n        return Verdict.RIGHT\n",
        "tests/tasks/test_answer.py::test_a_gold_answer_that_does_not_parse_is_never_right",
    ),
    one(
        "a comparison whose clock struck in vain ends without one",
        "our own CI, 2026-11-26: Math-Verify's alarm strikes once",
        "tasks/answer.py",
        "STRIKES_AGAIN = 0.5\n",
        "STRIKES_AGAIN = 0\n",
        "tests/tasks/test_answer.py::test_a_strike_of_the_clock_that_was_lost_is_not_the_last",
    ),
    one(
        "a comparison that ends after its clock is a wrong answer",
        "our own CI, 2026-11-26: Math-Verify's alarm strikes once",
        "tasks/answer.py",
        "    if struck:\n",
        "    if struck and over is None:\n",
        "tests/tasks/test_answer.py::test_a_strike_of_the_clock_that_was_lost_is_not_the_last",
    ),
    one(
        "FOLIO's train and dev share stories",
        "issue 14: first bug trial",
        "tasks/folio.py",
        'carve([(str(p.meta["story"]), p) for p in found], split)',
        "carve([(p.key, p) for p in found], split)",
        "tests/tasks/test_public.py::test_folio_shares_no_story_between_train_and_dev",
    ),
    one(
        "MATH-500 ignores its timeout",
        "issue 14: first bug trial",
        "tasks/math500.py",
        "return math_equal(problem.answer, reply, timeout=self.timeout)",
        "return math_equal(problem.answer, reply)",
        "tests/tasks/test_public.py::test_math500_passes_its_timeout_on",
    ),
    one(
        "a prompt of white space is asked",
        "issue 14",
        "tasks/find.py",
        "    if not problem.prompt.strip():\n",
        "    if not problem.prompt:\n",
        "tests/tasks/test_watch.py::test_an_empty_prompt_and_to_learn_from_an_empty_answer_are_named",
    ),
    one(
        "a row of a user's own conversations without turns is a traceback",
        "issue 14",
        "tasks/messages.py",
        "before, reply = turns[:-1], turns[-1] if turns else None",
        "before, reply = turns[:-1], turns[-1]",
        "tests/tasks/test_messages.py::test_a_null_an_empty_or_a_nested_field_is_named_by_its_row",
    ),
    one(
        "load_task writes into the caller's options",
        "issue 14: second bug trial",
        "tasks/find.py",
        "given: dict[str, Any] = dict(options or {})",
        "given: Any = options or {}",
        "tests/tasks/test_splits_and_options.py::test_the_options_that_are_given_are_copied",
    ),
    one(
        "a conversation's key holds its last turn alone",
        "issue 14: second bug trial",
        "tasks/messages.py",
        "for m in before),",
        "for m in before[-1:]),",
        "tests/tasks/test_splits_and_options.py::test_all_turns_before_the_answer_make_a_conversation_another",
    ),
    one(
        "everyday's training split holds held-out problems",
        "issue 14: second bug trial",
        "tasks/everyday/mixture.py",
        "split_of(key, dev=DEV, test=TEST) != split",
        "split_of(key) != split",
        "tests/tasks/test_splits_and_options.py::test_an_everyday_chore_holds_out_a_twentieth_and_a_tenth_and_halves_the_rest",
    ),
    one(
        "FOLIO's stories are divided between the splits",
        "issue 14: third bug trial",
        "tasks/folio.py",
        'carve([(str(p.meta["story"]), p) for p in found], split)',
        "carve([(p.key, p) for p in found], split)",
        "tests/tasks/test_public.py::test_folio_shares_no_story_between_train_and_dev",
    ),
)
