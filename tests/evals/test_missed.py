"""What is said to be missed equals a plain computation from the attention weights, and known answers come out as known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sparse_model import BUDGET, VOCAB, attention_inputs, dense_weights, model_of
from torch import Tensor

from rorqual.core.errors import ConfigError, DataError
from rorqual.evals.sparse_attention_misses import DISTANCES, measure_selection_misses
from rorqual.model.attention import DSA

LENGTH = 90


def windows(count: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(VOCAB, (count, length + 1), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_it_equals_a_plain_computation() -> None:
    model, tokens = model_of(), windows()
    found = measure_selection_misses(model, tokens)
    assert (found.queries, found.dense, found.windows) == (2 * (LENGTH - BUDGET), 2 * BUDGET, 2)
    seen = [attention_inputs(model, window[:-1]) for window in tokens]
    inputs, outputs, selected = ([[parts[which][layer] for parts in seen] for layer in range(2)] for which in range(3))
    lowest = []
    for index, layer in enumerate(found.layers):
        mass, recall, weighted, difference = [], [], [], []
        share, inside = np.zeros(len(DISTANCES)), np.zeros(len(DISTANCES))
        for w in range(2):
            weights, dense = dense_weights(model.layers[index].attention, inputs[index][w], model)  # type: ignore[arg-type]
            for t in range(BUDGET, LENGTH):
                rows = selected[index][w][t].tolist()
                assert len(set(rows)) == BUDGET and max(rows) <= t
                mass.append(weights[:, t, rows].sum(-1).numpy())
                mean = weights[:, t].mean(0)
                best = sorted(range(t + 1), key=lambda s: -float(mean[s]))[:BUDGET]
                recall.append(len({*best} & {*rows}) / BUDGET)
                weighted.append(float(mean[sorted({*best} & {*rows})].sum() / mean[best].sum()))
                lowest.append(
                    (float(mean[rows].sum()), index, w, t, mean[: t + 1], sorted(rows), sorted({*best} - {*rows}))
                )
                difference.append(float((outputs[index][w][t] - dense[t]).norm() / dense[t].norm()))
                for s in range(t + 1):
                    place = max(i for i, first in enumerate(DISTANCES) if t - s >= first)
                    share[place] += float(mean[s])
                    inside[place] += float(mean[s]) * (s in rows)
        each = np.stack(mass)
        assert layer.heads == pytest.approx(each.mean(0), abs=1e-5)
        assert layer.mass == pytest.approx(each.mean(), abs=1e-5)
        assert layer.mass_p1 == pytest.approx(np.percentile(each.mean(1), 1), abs=1e-5)
        assert layer.recall == pytest.approx(np.mean(recall), abs=1e-6)
        assert layer.weighted_recall == pytest.approx(np.mean(weighted), abs=1e-5)
        assert layer.difference == pytest.approx(np.mean(difference), rel=1e-4)
        assert len(layer.distances) == 4
        for part, a, b in zip(layer.distances, share, inside, strict=False):
            assert part.share == pytest.approx(a / len(each), abs=1e-5) and part.inside == pytest.approx(
                b / a, abs=1e-5
            )
        assert sum(part.share for part in layer.distances) == pytest.approx(1, abs=1e-5)
    mass, index, w, t, weights, rows, left = min(lowest, key=lambda one: one[0])
    low = found.lowest
    assert (low.layer, low.window, low.mass) == (index, w, pytest.approx(mass, abs=1e-5))
    assert (low.tokens, low.selected, low.missed) == (tuple(tokens[w, : t + 1].tolist()), tuple(rows), tuple(left))
    assert low.weights == pytest.approx(weights.numpy(), abs=1e-5) and left
    logprobs = []
    for budget in (LENGTH, BUDGET):
        other = model_of(budget)
        logits = torch.stack([other.logits(other(window[None, :-1]).hidden)[0, BUDGET:] for window in tokens])
        logprobs.append(logits.log_softmax(-1))
    dense, sparse = logprobs
    assert (
        found.kl == pytest.approx(float((dense.exp() * (dense - sparse)).sum(-1).mean()), rel=1e-4) and found.kl > 0.01
    )
    assert (
        found.flips == pytest.approx(float((dense.argmax(-1) != sparse.argmax(-1)).float().mean())) and found.flips > 0
    )
    for value, part in ((found.loss_dense, dense), (found.loss_sparse, sparse)):
        assert value == pytest.approx(-float(part.gather(2, tokens[:, BUDGET + 1 :, None]).mean()), rel=1e-4)


@torch.no_grad()
def test_a_tie_at_the_threshold_is_counted_and_others_are_not() -> None:
    model = model_of()
    assert all(layer.tied == 0 for layer in measure_selection_misses(model, windows()).layers)
    model.layers[1].attention.indexer.weights_proj.weight.zero_()  # type: ignore[union-attr]
    first, second = measure_selection_misses(model, windows()).layers
    assert (first.tied, second.tied) == (0, 1), "all scores of layer 1 are 0"


def test_a_window_within_the_budget_and_a_model_without_selection_are_refused() -> None:
    with pytest.raises(DataError, match="windows of 8 tokens are not longer than index_topk=8"):
        measure_selection_misses(model_of(), windows(length=8))
    measure_selection_misses(model_of(), windows(length=9))
    with pytest.raises(ConfigError, match="its attention is of kind mla"):
        measure_selection_misses(model_of(kind="mla"), windows())


@torch.no_grad()
def test_the_dense_weights_of_a_query_are_those_of_all_its_positions() -> None:
    model, (window,) = model_of(), windows(1)
    recorded = model(window[None, :-1], record=("attention_rows", "attention_mass")).recorded
    for rows, mass in zip(recorded["attention_rows"], recorded["attention_mass"], strict=True):
        for t in (0, 5, LENGTH - 1):
            assert sorted(row for row in rows[t].tolist() if row >= 0) == list(range(t + 1))
            assert float(mass[t][rows[t] >= 0].sum()) == pytest.approx(1, abs=1e-5)


def test_the_dense_reference_ignores_the_adaptive_budget() -> None:
    """The same weights with another `index_top_p` have the same dense loss, and miss more."""
    model, tokens = model_of(), windows()
    fixed = measure_selection_misses(model, tokens)
    for layer in model.layers:
        assert isinstance(layer.attention, DSA)
        layer.attention.config = layer.attention.config.model_copy(update={"index_top_p": 0.5})
    adaptive = measure_selection_misses(model, tokens)
    assert adaptive.loss_dense == pytest.approx(fixed.loss_dense, rel=1e-6)
    assert all(a.mass < f.mass for a, f in zip(adaptive.layers, fixed.layers, strict=True))
    assert all(position >= 0 for position in adaptive.lowest.selected)
    assert [layer.attention.config.index_top_p for layer in model.layers] == [0.5, 0.5]  # type: ignore[union-attr]
