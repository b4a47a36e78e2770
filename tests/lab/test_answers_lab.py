"""The experiment `answers` in small: every way against a second reading of the same files."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import pytest
from small_run import run_small

from rorqual.lab.answers import (
    BIG,
    LITTLE,
    STOP,
    VERIFIER_ROWS,
    VOTES,
    AnswersExperiment,
    cascade_of,
    results_by_method,
)
from rorqual.lab.job import ExperimentJob, TrainJob
from rorqual.lab.page import page_text
from rorqual.recipes.sft import sft
from rorqual.train.run import Run

SHARE = 0.04


class Small(AnswersExperiment):
    """Few families, little training, no `refine`: replies of an untrained model do not fit into a conversation."""

    name: ClassVar[str] = "answers"
    task: ClassVar[str] = "families:swap,count"
    rounds: ClassVar[int] = 0
    count: ClassVar[int] = 100
    graded: ClassVar[int] = 300
    max_tokens: ClassVar[int] = 16
    budgets: ClassVar[tuple[int, ...]] = (3, 6)

    def training_jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        given: dict[str, Any] = {
            "task": self.task,
            "steps": 60,
            "rows": 4,
            "row": 128,
            "think": 0.0,
            "options": self.options,
            "seed": seed,
        }
        return [
            TrainJob(name=name, estimate=1, make=partial(sft, size=size, **given))
            for name, size in ((BIG, "tiny"), (LITTLE, "tiny-student"))
        ]

    def verifier_run(self, seed: int, place: Path, share: float) -> Run:
        return sft(
            data=str(place / VERIFIER_ROWS), start=str(place / BIG), steps=60, rows=4, row=128, lr=1e-2, seed=seed
        )


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return run_small(Small(), tmp_path_factory.mktemp("answers"), SHARE)


def test_a_cascade_asks_the_least_sure_first_and_pays_for_both(places: dict[int, Path]) -> None:
    for place in places.values():
        found, cascade = results_by_method(place, Small.budgets), cascade_of(place)
        point = cascade.result_with_teacher_on(
            round(0.25 * len(cascade.problems_by_confidence())), cascade.problems_by_confidence()
        )
        way = found["cascade, 25% to the large model"]
        assert fmean(way[0]) == pytest.approx(point.accuracy) and fmean(way[1]) == pytest.approx(point.tokens)
        assert fmean(found["cascade, 25% at random"][0]) == pytest.approx(point.at_random)


def test_the_conclusion_in_small(places: dict[int, Path]) -> None:
    finding = Small().conclude(places)
    text = json.dumps(finding.model_dump(mode="json"))
    assert finding.verdict == "open" and finding.title in page_text(finding) and "NaN" not in text
    saved, kept = finding.contrasts[:2]
    by_seed = [results_by_method(place, Small.budgets) for place in places.values()]
    assert saved.by_seed == tuple(
        (pytest.approx(1), pytest.approx(sum(one[STOP][1]) / sum(one[VOTES][1]))) for one in by_seed
    )
    assert list(kept.by_seed) == [
        (pytest.approx(fmean(one[VOTES][0])), pytest.approx(fmean(one[STOP][0]))) for one in by_seed
    ]
    right, tokens = ({row[0]: row for row in table.rows} for table in finding.tables)
    assert set(right) == set(by_seed[0]) == set(Small().arms)
    assert finding.tables[0].heads[1] == "all, %" and {*finding.tables[0].heads[2:4]} == {"swap, %", "count, %"}
    for shown, part, scale, digits in ((right, 0, 100, 1), (tokens, 1, 1, 1)):
        mean = fmean(fmean(one["majority of 4"][part]) for one in by_seed)
        assert shown["majority of 4"][1] == f"{scale * mean:.{digits}f}"
