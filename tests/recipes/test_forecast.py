"""A quickstart's forecast: the arithmetic. Whether it holds on a machine is measured by benchmarks/plan.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rorqual.recipes.quickstart import FULL, STUDENT_TASK
from rorqual.recipes.quickstart.forecast import (
    GOES_OVER,
    TEACHES,
    EvaluationSet,
    ShapeCost,
    StageForecast,
    TokenLengths,
    count_solution_tokens,
    draw_solutions,
    mean_lengths,
    stage_forecasts,
    thinking_share_after_grpo,
)
from rorqual.recipes.quickstart.summary import PAID_FOR

LENGTHS = TokenLengths(prompt=20, thinking=50, at_once=5)
PACE = ShapeCost(step=0.1, tokens=4000, update=1e-5, rollout=1e-3, on=2e-3, off=5e-4, cores=2)
EXAM = EvaluationSet(problems=100, lengths=LENGTHS, drawing=1.0)


def made(**changed: int) -> dict[str, StageForecast]:
    scale = FULL.model_copy(update=changed)
    found = stage_forecasts(scale, PACE, replace(PACE, step=0.05), LENGTHS, LENGTHS, EXAM, EXAM, (1.5, 3e-3))
    return {stage.name: stage for stage in found}


def test_every_stage_of_the_ledger_that_trains_samples_or_measures_is_there() -> None:
    assert set(made()) == {
        *(stage for stages in PAID_FOR.values() for stage in stages),
        "measure the teacher",
        "measure the students",
    }


def test_a_stage_is_its_work_times_its_pace() -> None:
    found = made()
    assert found["train the teacher"].core_seconds == pytest.approx(1300 * 0.1)
    assert found["train the teacher"].seconds == pytest.approx(65)
    assert found["train the base student"].core_seconds == pytest.approx(660 * 0.05)
    assert found["sample the teacher"].core_seconds == pytest.approx(1.5 + 4000 * 3e-3)
    share = 0.5 + 0.5 * GOES_OVER
    seen = 384 * (20 + share * 50 + (1 - share) * 5)
    assert found["reinforce the teacher"].core_seconds == pytest.approx(40 * (384e-3 + seen * 1e-5 * (1 / 3 + TEACHES)))


def test_twice_the_steps_cost_twice() -> None:
    one, two = made(), made(grpo_steps=80, distil_steps=1240)
    for name in ("reinforce the teacher", "distil the student", "train on answers alone"):
        assert two[name].core_seconds == pytest.approx(2 * one[name].core_seconds)
    assert two["train the teacher"] == one["train the teacher"]


def test_thinking_is_what_is_asked_or_the_habit() -> None:
    assert (
        thinking_share_after_grpo(0.0, 1.0) == thinking_share_after_grpo(1.0) == 1.0
        and 0.07 < thinking_share_after_grpo(0.07) < 1
    )
    measured = made()["measure the teacher"]
    before, after = (share * 2e-3 + (1 - share) * 5e-4 for share in (0.5, 1.0))
    assert measured.core_seconds == pytest.approx(100 * (before + after + 2 * (2e-3 + 5e-4)) + 2)


def test_lengths_are_those_of_the_worked_solutions() -> None:
    solutions = draw_solutions(STUDENT_TASK, {"hard": 1.0}, 0)
    assert all(one.thinking > one.at_once > 0 and one.prompt > 0 for _, one in solutions)
    assert count_solution_tokens([solutions[0][0]])[0] == solutions[0]
    lengths = mean_lengths(solutions)
    assert lengths.at_once < lengths.mean_reply_length(0.5) < lengths.thinking == lengths.mean_reply_length(1.0)
