"""`rorqual attention` over several texts, needles and copied lines: each option has its effect, and bad input is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from sparse_model import BYTES, model_of

from rorqual.core.errors import DataError
from rorqual.data.passages import load_passage
from rorqual.evals.attention_tables import attention_by_distance, recall_by_layer, report_as_text
from rorqual.evals.planted_passages import DEPTHS, measure_planted, needles, plant
from rorqual.evals.sparse_attention_misses import measure_selection_misses
from rorqual.evals.sparse_attention_report import NamedText, SparseAttentionReport, measure_sparse_attention

BUDGET, LENGTH = 12, 100


def report_of(texts: list[NamedText], planted: Any = (), **settings: Any) -> SparseAttentionReport:
    given = {"name": "m", "length": LENGTH, "windows": 1, "budgets": (BUDGET,)} | settings
    return measure_sparse_attention(model_of(BUDGET, vocab=263), BYTES, texts, planted, **given)


@torch.no_grad()
def test_each_text_is_measured_by_itself_at_each_budget() -> None:
    texts = [NamedText(kind, load_passage(kind)) for kind in ("prose", "chinese")]
    steps: list[tuple[int, int]] = []
    report = report_of(texts, budgets=(5, 30), windows=2, progress=lambda *step: steps.append(step))
    assert steps == [(done, 6) for done in range(1, 7)]
    assert [text.name for text in report.texts] == ["prose", "chinese"] and report.budgets == (5, BUDGET, 30)
    for text, found in zip(texts, report.texts, strict=True):
        ids = BYTES.encode(text.text)
        tokens = torch.tensor([ids[i * LENGTH : (i + 1) * LENGTH + 1] for i in range(2)])
        assert [missed.budget for missed in found.budgets] == [5, BUDGET, 30]
        for budget in (5, BUDGET, 30):
            assert found.misses_at_budget(budget) == measure_selection_misses(model_of(budget, vocab=263), tokens)
    by_layer = [[text.misses_at_budget(30).layers[layer].recall for text in report.texts] for layer in range(2)]
    assert recall_by_layer(report, 30) == pytest.approx([sum(pair) / 2 for pair in by_layer])
    assert report.weighted_recall == min(text.misses_at_budget(BUDGET).weighted_recall for text in report.texts)
    layers = [layer for text in report.texts for layer in text.misses_at_budget(BUDGET).layers]
    for index, part in enumerate(attention_by_distance(report)):
        shares = [layer.distances[index].share for layer in layers]
        kept = [layer.distances[index].share * layer.distances[index].inside for layer in layers]
        assert (part.share, part.inside) == (pytest.approx(sum(shares) / 4), pytest.approx(sum(kept) / sum(shares)))
    assert [part.name for part in attention_by_distance(report)] == ["0", "1-15", "16-63", "64-99"]


@torch.no_grad()
def test_needles_are_measured_at_each_depth_and_length_that_can_miss_any() -> None:
    steps: list[tuple[int, int]] = []
    given: dict[str, Any] = {"length": 200, "windows": 2, "budgets": (80,)}
    report = report_of([], ["needle"], progress=lambda *step: steps.append(step), **given)
    assert steps[-1] == (30, 30), "three lengths, five depths, two budgets"
    cells = {(one.budget, one.length, one.depth) for one in report.planted}
    # 50 tokens are too short, and at a budget of 80 the questions of a passage of 100 tokens see all positions.
    assert cells == {(b, n, d) for b, n in ((12, 100), (12, 150), (12, 200), (80, 150), (80, 200)) for d in DEPTHS}
    passages = plant(BYTES, needles(BYTES, 2), 150, 0.75)
    expected = measure_planted(model_of(80, vocab=263), "needle", passages, 0.75)
    assert next(one for one in report.planted if (one.budget, one.length, one.depth) == (80, 150, 0.75)) == expected
    text = report_as_text(report)
    row = [one for one in report.planted if (one.budget, one.length) == (80, 150)]
    assert re.search(r"\n +80 +150 +" + " +".join(f"{one.selected_share:.1%}" for one in row), text)


def test_a_budget_not_below_the_length_is_dense_and_said() -> None:
    texts = [NamedText("prose", load_passage("prose"))]
    report = report_of(texts, budgets=(LENGTH - 1, LENGTH))
    assert (report.budgets, report.dense) == ((BUDGET, LENGTH - 1), (LENGTH,))
    assert f"At a budget of {LENGTH}, attention is dense" in report_as_text(report)
    assert "attention is dense:" not in report_as_text(report_of(texts, budgets=(LENGTH - 1,)))
    small = report_of(texts, budgets=(5,), length=BUDGET)
    assert (small.budgets, small.dense, small.shown_budget) == ((5,), (BUDGET,), 5)
    with pytest.raises(DataError, match=rf"a length of {BUDGET} tokens is not above index_topk={BUDGET}"):
        report_of(texts, budgets=(), length=BUDGET)
    with pytest.raises(DataError, match="is not above"):
        report_of(texts, budgets=(50,), length=BUDGET)
