"""Bugs in `distil`. Each is put back alone: see ../mutant.py."""

from __future__ import annotations

from mutant import one

MUTANTS = (
    one(
        "requests under way are not reserved against the budget",
        "litellm#40095 #34732",
        "distil/purse.py",
        "self.spent + self._reserved() + most > self.access.budget",
        "self.spent + most > self.access.budget",
        "tests/distil/test_purse.py::test_64_at_once_never_overspend",
    ),
    one(
        "a restart forgets what was under way at a kill",
        "litellm#40095 #34732",
        "distil/purse.py",
        "if name not in arrived | refused)",
        "if name in arrived & refused)",
        "tests/distil/test_purse.py::test_what_was_under_way_at_a_kill_counts_in_full",
    ),
    one(
        "an answer is graded before it is kept",
        "distilabel#1065",
        "distil/factory.py",
        "            full: DiskFull | None = None\n",
        "            self.verify(entries)\n            full: DiskFull | None = None\n",
        "tests/distil/test_remote_teacher.py::test_a_grader_that_crashes_stops_and_what_is_under_way_is_kept",
    ),
    one(
        "a sample that was there is kept twice after a restart",
        "distilabel#1065",
        "distil/teacher.py",
        "                keep([entry for entry in drawn if entry.place in missing], nothing)\n",
        "                keep(drawn, nothing)\n",
        "tests/distil/test_local.py::test_a_restart_gives_what_a_straight_run_gives",
    ),
    one(
        "a problem of the test split is asked and trained on",
        "training files that hold test problems",
        "distil/problems.py",
        "[problem for problem in pool if problem.key not in out]",
        "[problem for problem in pool]",
        "tests/distil/test_contamination.py::test_a_problem_of_the_test_split_is_not_asked_and_named",
    ),
    one(
        "a try that timed out is not counted as spent",
        "issue 14: first bug trial",
        "distil/purse.py",
        "self._lose(place)  # an earlier try",
        "self._open.pop(place, None)  # an earlier try",
        "tests/distil/test_remote_teacher.py::test_answers_that_get_lost_count_against_the_budget",
    ),
    one(
        "refused tries count as paid on resume",
        "issue 14: first bug trial",
        "distil/purse.py",
        "if name not in arrived | refused)",
        "if name not in arrived)",
        "tests/distil/test_purse.py::test_what_was_under_way_at_a_kill_counts_in_full",
    ),
    one(
        "only the last decontamination set counts",
        "issue 14: first bug trial",
        "distil/problems.py",
        "held += evaluation_items(source, config.seed)",
        "held = evaluation_items(source, config.seed)",
        "tests/distil/test_contamination.py::test_every_evaluation_set_counts_and_the_tasks_own_test_split",
    ),
    one(
        "access.timeout is ignored",
        "issue 14: first bug trial",
        "distil/teacher.py",
        "            timeout=access.timeout,\n",
        "",
        "tests/distil/test_remote_teacher.py::test_a_failure_is_named_what_arrived_is_kept_and_the_same_call_goes_on",
    ),
)
