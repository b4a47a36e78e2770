"""`rorqual attention` over several texts, needles and copied lines: each option has its effect, and bad input is refused."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from sparse_model import BYTES, model_of

from rorqual.core.errors import DataError
from rorqual.data.passages import load_passage
from rorqual.evals.attention_page import report_as_text
from rorqual.evals.damage import NamedText, summarise
from rorqual.evals.planted_passages import DEPTHS, needles, plant
from rorqual.evals.sparse_attention_damage import Passage, measure_damage
from rorqual.evals.sparse_attention_report import SparseAttentionReport, measure_sparse_attention
from rorqual.evals.stats import t_interval

BUDGET, LENGTH = 12, 100


def report_of(texts: list[NamedText], planted: Any = (), **settings: Any) -> SparseAttentionReport:
    given = {"name": "m", "length": LENGTH, "windows": 2, "budgets": (BUDGET,)} | settings
    return measure_sparse_attention(model_of(BUDGET, vocab=263), BYTES, texts, planted, **given)


@torch.no_grad()
def test_each_text_is_measured_by_itself_at_each_budget() -> None:
    texts = [NamedText(kind, load_passage(kind)) for kind in ("prose", "chinese")]
    steps: list[tuple[int, int]] = []
    report = report_of(texts, budgets=(5, 30), progress=lambda *step: steps.append(step))
    assert steps == [(done, 6) for done in range(1, 7)]
    budgets = (5, BUDGET, 30)
    assert [(one.name, one.budget) for one in report.measurements] == [(t.name, b) for t in texts for b in budgets]
    measured = iter(report.measurements)
    for text in texts:
        ids = BYTES.encode(text.text)
        rows = [tuple(ids[i * LENGTH : (i + 1) * LENGTH + 1]) for i in range(2)]
        for budget in budgets:
            passages = [Passage(row, *[range(budget, LENGTH)] * 2, range(LENGTH)) for row in rows]
            expected = measure_damage(model_of(budget, vocab=263), passages, budget)
            one = next(measured)
            assert ([*one.passages], [*one.layers], one.length) == (*expected, LENGTH)
            assert report.summaries(budget)[text.name] == summarise(expected[0])
    out = report_as_text(report)
    values = [[report.summaries(b)[t.name].changed.mean for b in budgets] for t in texts]
    for text, row in zip(texts, values, strict=True):
        assert re.search(rf"\n *{text.name} +" + " +".join(f"{value:.1%}" for value in row), out)
    inside = [one.layers[1].inside for one in report.measurements if one.budget == BUDGET]
    assert re.search(rf"\n *1 +{sum(inside) / 2:.3f} ", out)
    assert "352 predictions compared" in out


@torch.no_grad()
def test_needles_are_measured_at_each_depth_and_length_that_can_miss_any() -> None:
    steps: list[tuple[int, int]] = []
    given: dict[str, Any] = {"length": 200, "budgets": (80,)}
    report = report_of([], ["needle"], progress=lambda *step: steps.append(step), **given)
    assert steps[-1] == (30, 30), "three lengths, five depths, two budgets"
    cells = {(one.budget, one.length, one.depth) for one in report.measurements}
    # 50 tokens are too short, and at a budget of 80 the questions of a passage of 100 tokens see all positions.
    assert cells == {(b, n, d) for b, n in ((12, 100), (12, 150), (12, 200), (80, 150), (80, 200)) for d in DEPTHS}
    expected = measure_damage(model_of(80, vocab=263), plant(BYTES, needles(BYTES, 2), 150, 0.75), 80)
    one = next(one for one in report.measurements if (one.budget, one.length, one.depth) == (80, 150, 0.75))
    assert ([*one.passages], [*one.layers]) == expected
    sought, inside = (sum(values) for values in zip(*((v.attention, v.attention * v.inside) for v in expected[1])))
    assert one.selected_share == pytest.approx(inside / sought)
    row = [one for one in report.measurements if (one.budget, one.length) == (80, 150)]
    found = re.search(
        r"\n *needle +80 +150 +" + " +".join(f"{one.selected_share:.1%}" for one in row), report_as_text(report)
    )
    assert found and report.summaries(80)["needle"].kl.pairs == 2


def test_a_budget_not_below_the_length_is_dense_and_said() -> None:
    texts = [NamedText("prose", load_passage("prose"))]
    report = report_of(texts, budgets=(LENGTH - 1, LENGTH))
    assert (report.budgets, report.dense) == ((BUDGET, LENGTH - 1), (LENGTH,))
    assert f"At a budget of {LENGTH}, attention is dense" in report_as_text(report)
    assert "attention is dense:" not in report_as_text(report_of(texts, budgets=(LENGTH - 1,)))
    small = report_of(texts, budgets=(5,), length=BUDGET)
    assert (small.budgets, small.dense, small.shown_budget) == ((5,), (BUDGET,), 5)
    for settings in ({"budgets": ()}, {"budgets": (50,)}, {"budgets": (5,), "limited": True}):
        with pytest.raises(DataError, match=rf"a length of {BUDGET} tokens is not above index_topk={BUDGET}"):
            report_of(texts, length=BUDGET, **settings)
    with pytest.raises(DataError, match="do not fill two windows of 100"):
        report_of([NamedText("short", "b" * 200)])
    report_of([NamedText("short", "b" * 201)])


@torch.no_grad()
def test_a_planted_text_counts_once_however_often_it_is_planted() -> None:
    report = report_of([], ["needle"], length=150)
    cells = [one.passages for one in report.measurements]
    n = len(cells)
    assert n == 15, "five depths of three lengths"
    changes = [sum(cell[needle].changed for cell in cells) / n for needle in range(2)]
    found = report.summaries(BUDGET)["needle"]
    assert found.changed.mean == pytest.approx(sum(changes) / 2) and found.scored == sum(
        p.scored for c in cells for p in c
    )
    spread = t_interval([sum(cell[needle].kl for cell in cells) / n for needle in range(2)])
    assert (found.kl.interval.low, found.kl.interval.high) == pytest.approx((spread.low, spread.high))


def test_what_is_no_number_exceeds_every_limit_and_what_is_not_measured_is_refused() -> None:
    report = report_of([NamedText("prose", load_passage("prose"))])
    [one] = report.measurements
    broken = replace(one, passages=tuple(replace(passage, kl=math.nan) for passage in one.passages))
    assert replace(report, measurements=(broken,)).exceeded({"kl": 100.0})
    wide = model_of(30, vocab=263)  # at 30 positions, the questions of a passage of 60 tokens see all positions
    given: dict[str, Any] = {"name": "m", "length": 60, "windows": 2, "budgets": (3,)}
    assert measure_sparse_attention(wide, BYTES, [], ["needle"], **given).measurements
    with pytest.raises(DataError, match="too short for needle"):
        measure_sparse_attention(wide, BYTES, [], ["needle"], **given, limited=True)


def test_a_limit_is_compared_with_the_upper_end_of_an_interval() -> None:
    report = report_of([NamedText("prose", load_passage("prose"))], ["needle"], budgets=(5, 30))
    for name, damage in report.summaries(BUDGET).items():
        for field in ("kl", "changed", "lost"):
            high = getattr(damage, field).interval.high
            assert not [line for line in report.exceeded({field: high}) if line.startswith(name)]
            [line] = [line for line in report.exceeded({field: high - 1e-4}) if line.startswith(name)]
            assert f"{field} may be {high:.3g}, above max_{field}=" in line
    assert report.exceeded({}) == []
