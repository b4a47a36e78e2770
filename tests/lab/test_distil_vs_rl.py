"""The rules by which distillation and reinforcement are judged, on made-up runs and evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from graded import save_graded

from rorqual.core.records import write_json
from rorqual.lab.distil_vs_rl import DISTIL, SAMPLES, DistilVsRl, grpo_core_seconds
from rorqual.lab.finding import Finding
from rorqual.lab.job import EvaluationJob, SampleJob
from rorqual.lab.student import BASE, EIGHT, RL
from rorqual.lab.teacher import TEACHER

FAMILIES = ("add", "sub", "swap")


def run(place: Path, name: str, core_seconds: float) -> None:
    record = {
        "seconds": 1.0,
        "core_seconds": core_seconds,
        "tokens": 1000,
        "sampled_tokens": 500,
        "flops": 1,
        "reward": 0.5,
        "think_share": 0.5,
    }
    (place / name).mkdir(parents=True)
    (place / name / "metrics.jsonl").write_text(json.dumps({"step": 1} | record) + "\n", encoding="utf-8")


def concluded(folder: Path, *, sampling: float = 20.0, solved: dict[str, int] | None = None) -> Finding:
    """Five seeds. Distillation trains for 80 and samples for `sampling` core-seconds, and RL takes 100. The base solves `solved` of 20."""
    places = {seed: folder / str(seed) for seed in range(5)}
    for seed, place in places.items():
        for name in DistilVsRl.arms:
            run(place, name, {RL: 100.0, DISTIL: 80.0}.get(name, 100.0))
            right = {DISTIL: 18, RL: 8 + seed}.get(name, 5)
            verdicts = dict.fromkeys(FAMILIES, "1" * right + "0" * (20 - right))
            for mode in ("auto", "on"):
                save_graded(place, f"{TEACHER}-three-{mode}" if name == TEACHER else f"{name}-{mode}", verdicts)
        run(place, "teacher-base", 400.0)
        counts = {"add": 1, "sub": 6, "swap": 10} | (solved or {})
        lines = {family: ("1" + "0" * 7) * counts[family] + "0" * 8 * (20 - counts[family]) for family in FAMILIES}
        save_graded(place, EIGHT, lines, tries=8)
        cost = {"seconds": sampling, "core_seconds": sampling, "share": 1.0}
        [job] = [job for job in DistilVsRl().jobs(seed, place, 1.0) if isinstance(job, SampleJob)]
        assert job.name == SAMPLES
        write_json(job.cost_file(place), cost)
    return DistilVsRl().conclude(places)


def test_the_verdict_is_the_intervals_where_costs_are_equal(tmp_path: Path) -> None:
    finding = concluded(tmp_path / "equal")
    assert finding.verdict == "holds" and finding.contrasts[0].difference == pytest.approx(0.4)
    costs = {row[0]: row[1] for row in next(table for table in finding.tables if table.title == "core-seconds").rows}
    assert (costs["distilled"], costs["reinforced"], costs["teacher"]) == ("100.0", "100.0", "500.0"), (
        "with sampling; with its base"
    )
    unequal = concluded(tmp_path / "unequal", sampling=37.0)
    assert unequal.verdict == "open" and "no verdict" in unequal.words[-1]


def test_without_room_in_the_base_there_is_no_verdict(tmp_path: Path) -> None:
    for solved, inside in (({"swap": 11}, 10), ({"add": 0}, 10), ({"add": 0, "sub": 20}, 5)):
        finding = concluded(tmp_path / str(solved), solved=solved)
        assert finding.verdict == "open" and f"{inside} of 15 pairs" in finding.words[-1]


def test_the_budget_is_computed_from_counts_of_tokens(tmp_path: Path) -> None:
    run(tmp_path, RL, 7.0)
    assert grpo_core_seconds(tmp_path) == pytest.approx(1000 * 44e-6 + 500 * 28e-6)


def test_the_teacher_is_measured_as_its_student_is(tmp_path: Path) -> None:
    """The student learns from samples of the teacher made to think: by own choice alone the comparison would not be fair."""
    jobs = {job.name: job for job in DistilVsRl().jobs(100, tmp_path, 1.0) if isinstance(job, EvaluationJob)}
    for mode in ("auto", "on"):
        teacher, student = jobs[f"{TEACHER}-three-{mode}"], jobs[f"{DISTIL}-{mode}"]
        assert teacher.thinking == student.thinking == mode and teacher.model == TEACHER
        assert (teacher.seed, teacher.count, teacher.task) == (student.seed, student.count, student.task)
    assert BASE in DistilVsRl.arms
