"""The rule of an experiment on hand-made readings: pairs, goals, equal costs and tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graded import graded

from rorqual.core.records import write_json
from rorqual.evals.compare import compare_seeds, did_think, is_right
from rorqual.lab.experiment import SHARE, ArmPair, Experiment, Quantity, Readings, by_family
from rorqual.lab.finding import Finding
from rorqual.lab.job import ExperimentJob
from rorqual.lab.page import page_text

RIGHT, LOSS, COST = "right", "loss", "core-seconds"
SHIFTS = (-0.002, -0.001, 0.0, 0.001, 0.002)


class Toy(Experiment):
    """Two arms. Each seed's readings are one JSON file."""

    name, title, claim, source = "toy", "t", "c", "s"
    arms = {"old": "the old", "new": "the new"}
    quantities = {RIGHT: SHARE, LOSS: Quantity("nats"), COST: Quantity()}
    pairs = (
        ArmPair(question="loss", quantity=LOSS, a="old", b="new", claimed=("all",), bound=-0.1, side="below", equal={COST: 0.15}),
        ArmPair(question="right", quantity=RIGHT, a="old", b="new", claimed=("x",)),
        ArmPair(question="relative", quantity=LOSS, a="old", b="new", relative=True, of="named"),
    )  # fmt: skip
    wording = {
        LOSS: "the loss",
        RIGHT: "the accuracy",
        "x": "on x",
        "old": "with the old arm",
        "new": "with the new arm",
    }
    note = "n"
    why = ""

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        return []

    def read(self, place: Path) -> Readings:
        found: dict[str, Any] = json.loads((place / "readings.json").read_bytes())
        return {name: {arm: found[name][arm] for arm in self.arms} for name in self.quantities}

    def reason_for_no_verdict(self, seeds: Sequence[Readings]) -> str:
        return self.why


def written(
    folder: Path, *, loss: float = 1.0, right: float = 0.5, cost: Sequence[float] = (100.0,) * 5
) -> dict[int, Path]:
    """Five seeds: the loss and the accuracy of the new arm, where the old one has 2 nats and never answers correctly."""
    places = {}
    for seed, shift in enumerate(SHIFTS):
        place = places[seed] = folder / str(seed)
        new = {str(item): float(item < 100 * right + (seed - 2 if right else 0)) for item in range(100)}
        readings = {
            RIGHT: {
                "old": {"all": dict.fromkeys(new, 0.0), "x": dict.fromkeys(new, 0.0)},
                "new": {"all": new, "x": new},
            },
            LOSS: {
                "old": {"all": {"0": 1.0, "1": 3.0}},
                "new": {"all": {"1": loss + 1 + shift, "0": loss - 1 + shift, "2": 99.0}},
            },
            COST: {"old": {"all": {"0": 100.0}}, "new": {"all": {"0": cost[seed]}}},
        }
        write_json(place / "readings.json", readings)
    return places


def test_a_claim_holds_if_all_its_parts_do(tmp_path: Path) -> None:
    finding = Toy().conclude(written(tmp_path))
    assert finding.verdict == "holds" and len(finding.words) == 2 and finding.seeds == (0, 1, 2, 3, 4)
    assert "holds" in finding.words[0] and "below -0.1" in finding.words[0]
    assert finding.headline == (
        "The loss at equal core-seconds is at least 0.1 nats lower with the new arm than with the old arm. "
        "The accuracy on x is higher with the new arm than with the old arm."
    )
    assert Toy().conclude(written(tmp_path, loss=2.0)).verdict == "does not hold"
    assert Toy().conclude(written(tmp_path, loss=1.9)).verdict == "open", "the interval contains the bound"
    assert Toy().conclude(written(tmp_path, right=0.0)).verdict == "open"
    assert Toy().conclude({0: tmp_path / "0", 1: tmp_path / "1"}).verdict == "open", "two seeds"


def test_a_stored_finding_is_judged_from_its_problems_alone(tmp_path: Path) -> None:
    """Every digit of verdict, headline, contrasts and tables follows from `per_problem` of the JSON file."""
    finding = Toy().conclude(written(tmp_path, loss=1.9, right=0.37))
    write_json(tmp_path / "toy.json", finding.model_dump(mode="json"))
    stored = Finding.load(tmp_path / "toy.json")
    assert stored == finding and stored.runs["new"] == (
        "seed-0/new",
        "seed-1/new",
        "seed-2/new",
        "seed-3/new",
        "seed-4/new",
    )
    emptied = {"contrasts": (), "tables": (), "headline": "", "words": (), "verdict": "holds"}
    assert Toy().judge_again(stored.model_copy(update=emptied)) == finding
    assert stored.per_problem is not None
    [first, *others] = stored.per_problem
    changed = [
        one.model_copy(update={"values": one.values.replace("1", "0")}) if one.quantity == RIGHT else one
        for one in first.series
    ]
    other = Toy().judge_again(
        stored.model_copy(update={"per_problem": (first.model_copy(update={"series": tuple(changed)}), *others)})
    )
    assert other.contrasts[1].b < finding.contrasts[1].b, "it is read from there"


def test_equal_values_in_every_seed_are_no_interval(tmp_path: Path) -> None:
    """The bootstrap of a difference that is the same in all seeds has zero width: it is said to be none, and gives no verdict."""
    toy, places = Toy(), written(tmp_path)
    for place in places.values():
        readings = json.loads((place / "readings.json").read_bytes())
        readings[LOSS]["new"] = {"all": {"0": 0.0, "1": 2.0}}
        write_json(place / "readings.json", readings)
    finding = toy.conclude(places)
    loss = finding.contrasts[0]
    assert (loss.low, loss.high) == (-1.0, -1.0)
    assert "bootstrap none: the same in every seed, Student's t none: the same in every seed" in finding.words[0]
    assert finding.verdict == "open" and finding.headline.startswith("Whether the loss at equal core-seconds")
    assert "none: the same in every seed" in page_text(finding)
    toy.quantities = Toy.quantities | {LOSS: Quantity("nats", exact=True)}
    assert toy.conclude(places).contrasts[0].judge(-0.1, "below") == "holds", (
        "what is computed from the configuration is exact"
    )


def test_contrasts_pair_items_and_divide_by_the_first_arm(tmp_path: Path) -> None:
    loss, right, in_x, relative = Toy().conclude(written(tmp_path)).contrasts
    assert (loss.a, loss.of, loss.unit) == (2.0, "all", "nats") and loss.b == pytest.approx(1.0)
    assert [b for _, b in loss.by_seed] == pytest.approx([1 + shift for shift in SHIFTS]), "item 2 has no partner"
    assert (right.of, in_x.of, relative.of, relative.unit) == ("all", "x", "named", "ratio")
    assert relative.a == 1 and relative.b == pytest.approx(0.5) and right.difference == pytest.approx(0.5)


def test_unequal_costs_or_an_objection_leave_the_verdict_open(tmp_path: Path) -> None:
    for costs, verdict in (
        ([114.9] * 5, "holds"),
        ([85.1] * 5, "holds"),
        ([100, 100, 100, 100, 116], "open"),
        ([130, 80, 100, 100, 90], "open"),
    ):
        finding = Toy().conclude(written(tmp_path, cost=costs))
        assert finding.verdict == verdict
        assert any("15%" in words and "no verdict" in words for words in finding.words) == (verdict == "open")
    toy = Toy()
    toy.why = "cannot be compared"
    finding = toy.conclude(written(tmp_path))
    assert finding.verdict == "open" and finding.words[-1] == "cannot be compared"
    toy.why, toy.pairs = "", (*Toy.pairs[:1], replace(Toy.pairs[1], groups=("all",)))
    finding = toy.conclude(written(tmp_path))
    assert finding.verdict == "open" and "nothing was measured" in finding.words[-1], "the claimed group x is missing"


def test_tables_show_means_and_each_seed(tmp_path: Path) -> None:
    right, loss, cost = Toy().conclude(written(tmp_path)).tables
    assert right.heads[:4] == ("right", "all, %", "x, %", "seed 0") and right.rows[1][:4] == (
        "the new",
        "50.0",
        "50.0",
        "48.0",
    )
    assert loss.rows[0][:2] == ("the old", "2.0000") and cost.rows[1][1] == "100" and loss.note == "n"


def test_contrasts_of_evaluations_are_those_of_evals() -> None:
    """The same means and intervals as `compare_seeds`, ungraded samples left out."""
    before = [graded({"x": "1001-0", "y": "0000"}), graded({"x": "110000", "y": "0101"}, own="b")]
    after = [graded({"x": "11-110", "y": "1110"}), graded({"x": "111000", "y": "1111"}, own="b")]
    for measure in (is_right, did_think):
        sides = ((by_family(a, measure), by_family(b, measure)) for a, b in zip(before, after, strict=True))
        seeds = [{RIGHT: {"old": a, "new": b}} for a, b in sides]
        found = [*ArmPair(question="q", quantity=RIGHT, a="old", b="new").contrasts(seeds, SHARE)]
        rows = [
            row
            for grain in ("all", "family")
            for row in compare_seeds(before, after, grain=grain, measure=measure, confidence=0.99, samples=20_000)  # type: ignore[arg-type]
        ]
        assert [one.of for one in found] == [row.family for row in rows] == ["all", "x", "y"]
        for one, row in zip(found, rows, strict=True):
            assert (one.a, one.b, one.difference) == pytest.approx((row.before, row.after, row.difference.mean))
            assert (one.low, one.high) == pytest.approx((row.difference.interval.low, row.difference.interval.high))
