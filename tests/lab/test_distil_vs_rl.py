"""The rules by which distillation and reinforcement are judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from rorqual.lab.distil_vs_rl import DISTIL, GOLD, MORE, ON_POLICY, DistilVsRl, _verdict
from rorqual.lab.finding import Contrast, contrast_of_values, mean_by_seed
from rorqual.lab.job import JobCost, Measure
from rorqual.lab.student import RL
from rorqual.lab.teacher import TEACHER

INSIDE = {"add": 0.05, "sub": 0.3, "swap": 0.5}


def cost(core_seconds: float) -> JobCost:
    return JobCost(seconds=core_seconds, core_seconds=core_seconds)


def costs(ratio: float) -> dict[str, JobCost]:
    return {DISTIL: cost(100 * ratio), RL: cost(100), TEACHER: cost(500)} | dict.fromkeys(
        (GOLD, MORE, ON_POLICY), cost(100)
    )


def contrast(low: float, high: float) -> Contrast:
    middle = (low + high) / 2
    return Contrast(
        question="q",
        a=0.4,
        b=0.4 + middle,
        difference=middle,
        low=low,
        high=high,
        by_seed=tuple((0.4, 0.4 + middle + off) for off in (-1e-3, 0, 1e-3, 0, 0)),
    )


def test_the_verdict_is_the_intervals_where_costs_are_equal() -> None:
    assert _verdict(contrast(0.1, 0.3), [costs(1.14)], [INSIDE])[0] == "holds"
    assert _verdict(contrast(-0.3, -0.1), [costs(0.86)], [INSIDE])[0] == "does not hold"
    assert _verdict(contrast(-0.1, 0.3), [costs(1.0)], [INSIDE])[0] == "open"


def test_without_equal_costs_there_is_no_verdict() -> None:
    verdict, words = _verdict(contrast(0.1, 0.3), [costs(1.17)], [INSIDE])
    assert verdict == "open" and "no verdict" in words[1]
    assert (
        _verdict(contrast(0.1, 0.3), [costs(1.3), costs(0.8)], [INSIDE])[0] == "open"
    )  # equal in the mean, in no seed


def test_without_room_in_the_base_there_is_no_verdict() -> None:
    some = _verdict(contrast(0.1, 0.3), [costs(1.0)] * 2, [INSIDE, INSIDE | {"swap": 0.4}])
    assert some[0] == "holds" and "6 of 6 pairs of family and seed" in some[1][2]
    assert "6.0 times" in some[1][1]  # the teacher's 500 and 100, over 100
    outside = _verdict(contrast(0.1, 0.3), [costs(1.0)] * 2, [INSIDE, INSIDE | {"swap": 0.51, "add": 0.04}])
    assert outside[0] == "open" and "4 of 6 pairs of family and seed" in outside[1][2] and "51.0 %" in outside[1][2]
    one_family_never = [INSIDE | {"add": 0.0}] * 5
    assert _verdict(contrast(0.1, 0.3), [costs(1.0)] * 5, one_family_never)[0] == "open"


def test_a_seed_that_differs_widens_the_interval_more_than_its_items_do() -> None:
    agreed = contrast_of_values("q", [[0.0] * 200] * 5, [[0.5] * 200] * 5, unit="nats")
    assert agreed.low == agreed.high == 0.5
    apart = contrast_of_values(
        "q", [[0.0] * 200] * 5, [[value] * 200 for value in (0.1, 0.3, 0.5, 0.7, 0.9)], unit="nats"
    )
    assert apart.difference == agreed.difference and apart.low < 0.25 and apart.high > 0.75
    assert [b for _, b in apart.by_seed] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])


def test_the_teacher_is_measured_as_its_student_is(tmp_path: Path) -> None:
    """The student learns from samples of the teacher made to think: by own choice alone the comparison would not be fair."""
    jobs = {job.name: job for job in DistilVsRl().jobs(100, tmp_path, 1.0) if isinstance(job, Measure)}
    for mode in ("auto", "on"):
        teacher, student = jobs[f"{TEACHER}-three-{mode}"], jobs[f"{DISTIL}-{mode}"]
        assert teacher.thinking == student.thinking == mode and teacher.model == TEACHER
        assert (teacher.seed, teacher.count, teacher.task, teacher.options) == (
            student.seed, student.count, student.task, student.options)  # fmt: skip


def test_no_evaluation_gives_no_bars() -> None:
    assert mean_by_seed([], "none", ()).points == ()
