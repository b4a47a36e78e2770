"""The experiment `answers` in small: every way against a second reading of the same files."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import pytest

from rorqual.core.records import RunDir
from rorqual.data.source.conversations import read_conversations
from rorqual.evals.compare import is_right
from rorqual.evals.evaluation import per_problem
from rorqual.evals.votes import majority, needed, stop_rule
from rorqual.lab.answers import (
    BIG,
    BOUND,
    GREEDY,
    LITTLE,
    SCORED,
    STOP,
    VERIFIER,
    VERIFIER_ROWS,
    VOTES,
    AnswersExperiment,
    cascade_of,
    ways,
)
from rorqual.lab.job import ExperimentJob, Train, evaluation
from rorqual.lab.page import page_text
from rorqual.model.load.run_directory import read_model_config
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

    def trained(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
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
            Train(name=name, estimate=1, make=partial(sft, size=size, **given))
            for name, size in ((BIG, "tiny"), (LITTLE, "tiny-student"))
        ]

    def verifier(self, seed: int, place: Path, share: float) -> Run:
        return sft(
            data=str(place / VERIFIER_ROWS), start=str(place / BIG), steps=60, rows=4, row=128, lr=1e-2, seed=seed
        )


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("answers")
    found = {seed: folder / f"seed-{seed}" for seed in (1, 2)}
    for seed, place in found.items():
        for job in Small().jobs(seed, place, SHARE):
            job.finish(place, SHARE)
    return found


def test_what_is_compared_is_measured_on_the_same_problems(places: dict[int, Path]) -> None:
    for seed, place in places.items():
        greedy = evaluation(place, f"{BIG}-{GREEDY}")
        names = [f"{BIG}-sixteen", SCORED, f"{LITTLE}-{GREEDY}", f"{BIG}-budget-3", f"{BIG}-budget-6", f"{BIG}-refined"]
        for name in names:
            assert evaluation(place, name).keys == greedy.keys
        assert evaluation(place, f"{BIG}-sixteen").params.n == 16 and greedy.params.temperature == 0
        assert evaluation(place, f"{BIG}-budget-3").params.think_budget == 3
        dev, graded = (evaluation(place, name) for name in (f"{LITTLE}-{GREEDY}-dev", f"{BIG}-graded"))
        assert (dev.split, graded.split, greedy.split) == ("dev", "train", "test")
        assert not {*dev.keys} & {*greedy.keys} and not {*graded.keys} & {*greedy.keys}
        assert {one.seed for one in (greedy, dev, graded)} == {seed}
        rows = read_conversations(place / VERIFIER_ROWS).conversations
        assert len(rows) == len(graded.samples) == 4 * len(graded.keys)
        assert RunDir(place / VERIFIER).config()["start"]["run"] == str(place / BIG)


def test_every_way_against_a_second_reading(places: dict[int, Path]) -> None:
    for place in places.values():
        found, scored = ways(place, Small.budgets), evaluation(place, SCORED)
        groups = [[s for s in scored.samples if s.key == key] for key in scored.keys]
        assert found[VOTES][0] == pytest.approx([majority(group) for group in groups])
        assert found[VOTES][1] == pytest.approx([sum(s.tokens for s in group) for group in groups])
        stopped = [group[: needed(group, stop_rule("sure", 16))] for group in groups]
        assert found[STOP][1] == pytest.approx([sum(s.tokens for s in group) for group in stopped])
        assert found[f"{BOUND} of 16"][0] == pytest.approx([float(any(map(is_right, group))) for group in groups])
        for name, way in (
            (f"{BIG}-{GREEDY}", GREEDY),
            (f"{BIG}-budget-6", "thinking budget of 6"),
            (f"{LITTLE}-{GREEDY}", "small model"),
        ):
            one = evaluation(place, name)
            assert found[way][0] == pytest.approx([*per_problem(one.samples, is_right).values()])
            assert found[way][1] == pytest.approx([s.tokens for s in one.samples])
        assert fmean(found["one sample"][0]) == pytest.approx(fmean(map(is_right, scored.samples)))
        best = [max(group, key=lambda s: s.score or 0.0) for group in groups]
        assert found["best by verifier of 16"][0] == pytest.approx([is_right(s) for s in best])
        assert all(s.score is not None for s in scored.samples)


def test_a_cascade_asks_the_least_sure_first_and_pays_for_both(places: dict[int, Path]) -> None:
    for place in places.values():
        found, cascade = ways(place, Small.budgets), cascade_of(place)
        point = cascade.point(round(0.25 * len(cascade.choices())), cascade.choices())
        way = found["cascade, 25% to the large model"]
        assert fmean(way[0]) == pytest.approx(point.accuracy) and fmean(way[1]) == pytest.approx(point.tokens)
        assert point.flops == pytest.approx(fmean(way[2]))
        assert fmean(found["cascade, 25% at random"][0]) == pytest.approx(point.at_random)
        little, big = (read_model_config(RunDir(place / name)) for name in (LITTLE, BIG))
        assert little != big and cascade.flops is not None and cascade.flops[0] < cascade.flops[1]


def test_the_conclusion_in_small(places: dict[int, Path]) -> None:
    finding = Small().conclude(places)
    text = json.dumps(finding.model_dump(mode="json"))
    assert finding.verdict == "open" and "accuracy over tokens" in page_text(finding) and "NaN" not in text
    saved, kept = finding.contrasts[:2]
    by_seed = [ways(place, Small.budgets) for place in places.values()]
    assert saved.by_seed == tuple(
        (pytest.approx(1), pytest.approx(sum(one[STOP][1]) / sum(one[VOTES][1]))) for one in by_seed
    )
    assert list(kept.by_seed) == [
        (pytest.approx(fmean(one[VOTES][0])), pytest.approx(fmean(one[STOP][0]))) for one in by_seed
    ]
    right, tokens, flops = ({row[0]: row for row in table.rows} for table in finding.tables)
    assert set(right) == set(by_seed[0]) == set(Small().arms)
    assert finding.tables[0].heads[1] == "all, %" and {*finding.tables[0].heads[2:4]} == {"swap, %", "count, %"}
    for shown, part, scale, digits in ((right, 0, 100, 1), (tokens, 1, 1, 1), (flops, 2, 1, 1)):
        mean = fmean(fmean(one["majority of 4"][part]) for one in by_seed)
        assert shown["majority of 4"][1] == f"{scale * mean:.{digits}f}"
