"""Bugs in `cli`. Each is put back alone: see ../mutant.py."""

from __future__ import annotations

from mutant import one

MUTANTS = (
    one(
        "bench counts every expert as read at each step",
        "a share of the bandwidth above what was reached",
        "cli/benching.py",
        "    experts = split_weights(config)[1] * (touched(config, batch) - touched(config, 1))\n",
        "    experts = split_weights(config)[1] * (1 - touched(config, 1))\n",
        "tests/cli/test_bench.py::test_a_step_reads_the_experts_that_so_many_tokens_reach",
    ),
    one(
        "a checkpoint that comes while another is read gives its name to that one's answers",
        "a review: 18 of 120 answers were another checkpoint's",
        "cli/evaluating.py",
        "        if run.checkpoint() == checkpoint:\n",
        "        if model:\n",
        "tests/cli/test_eval_kept.py::test_a_checkpoint_that_comes_while_another_is_read_is_read_in_its_place",
    ),
    one(
        "the loss of a text ignores threads",
        "issue 14: a sweep of options",
        "cli/measure.py",
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
)
