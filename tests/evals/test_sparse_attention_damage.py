"""What sparse attention changes and misses equals a plain computation from the logits and the attention weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sparse_model import BUDGET, BYTES, attention_inputs, dense_weights, model_of
from torch import Tensor

from rorqual.core.errors import ConfigError
from rorqual.evals.damage import PassageDamage, summarise
from rorqual.evals.planted_passages import copies, needles, plant
from rorqual.evals.sparse_attention_damage import Passage, measure_damage
from rorqual.evals.stats import paired_interval, t_interval, wilson
from rorqual.model.attention import DSA

LENGTH, VOCAB = 90, BYTES.vocab_size


def windows(budget: int = BUDGET) -> list[Passage]:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randint(VOCAB, (2, LENGTH + 1), generator=generator).tolist()
    return [Passage(tuple(row), *[range(budget, LENGTH)] * 2, range(LENGTH)) for row in rows]


def needle_passages() -> list[Passage]:
    return plant(BYTES, needles(BYTES, 3), 120, 0.3)


def copied_lines() -> list[Passage]:
    return plant(BYTES, copies(BYTES, 3), 120, 0.3)


@torch.no_grad()
@pytest.mark.parametrize("passages_of", [windows, needle_passages, copied_lines])
def test_it_equals_a_plain_computation(passages_of: Callable[[], list[Passage]]) -> None:
    model, dense_model, passages = model_of(vocab=VOCAB), model_of(400, vocab=VOCAB), passages_of()
    damage, layers = measure_damage(model, passages, BUDGET)
    by_layer: list[dict[str, list[float]]] = [
        {n: [] for n in ("all", "inside", "recall", "weighted", "out")} for _ in layers
    ]
    for one, found in zip(passages, damage, strict=True):
        tokens = torch.tensor(one.tokens)
        sparse, dense = (m.logits(m(tokens[None, :-1]).hidden)[0].log_softmax(-1) for m in (model, dense_model))
        kl, changed, right, loss = [], [], ([], []), ([], [])  # type: ignore[var-annotated]
        for t in one.scored:
            kl.append(sum(float(p.exp() * (p - q)) for p, q in zip(dense[t], sparse[t], strict=True)))
            changed.append(int(dense[t].argmax()) != int(sparse[t].argmax()))
            for side, logprobs in enumerate((sparse, dense)):
                right[side].append(int(logprobs[t].argmax()) == one.tokens[t + 1])
                loss[side].append(-float(logprobs[t, one.tokens[t + 1]]))
        expected = (*map(np.mean, (kl, changed, *right, *loss)),)
        assert found.scored == len(one.scored)
        assert (found.kl, found.changed, found.right, found.right_before) == pytest.approx(expected[:4], rel=1e-3)
        assert (found.loss, found.loss_before) == pytest.approx(expected[4:], rel=1e-4)
        assert found.kl > 0.001 and found.loss != pytest.approx(found.loss_before, abs=1e-4)
        inputs, outputs, selected = attention_inputs(model, tokens[:-1])
        for index, values in enumerate(by_layer):
            weights, out = dense_weights(model.layers[index].attention, inputs[index], model)  # type: ignore[arg-type]
            for t in one.queries:
                rows, mean = {*selected[index][t].tolist()}, weights[:, t].mean(0)
                best = sorted(range(t + 1), key=lambda s: -float(mean[s]))[:BUDGET]
                values["all"].append(float(mean[list(one.sought)].sum()))
                values["inside"].append(float(mean[sorted(rows & {*one.sought})].sum()))
                values["recall"].append(len({*best} & rows) / BUDGET)
                values["weighted"].append(float(mean[sorted({*best} & rows)].sum() / mean[best].sum()))
                values["out"].append(float((outputs[index][t] - out[t]).norm() / out[t].norm()))
    for layer, values in zip(layers, by_layer, strict=True):
        means = {name: float(np.mean(each)) for name, each in values.items()}
        assert layer.attention == pytest.approx(means["all"], rel=1e-4)
        assert layer.inside == pytest.approx(means["inside"] / means["all"], rel=1e-4) and layer.inside < 0.95
        assert (layer.recall, layer.weighted_recall) == pytest.approx((means["recall"], means["weighted"]), rel=1e-4)
        assert layer.difference == pytest.approx(means["out"], rel=1e-3)


def test_a_summary_has_the_intervals_of_its_passages() -> None:
    def passage(kl: float, changed: float, sparse: float, dense: float) -> PassageDamage:
        return PassageDamage(50, kl, changed, sparse, dense, 3 * kl, 2 * kl)

    found = summarise([passage(0.1, 0.2, 0.5, 0.75), passage(0.3, 0.3, 0.25, 0.25), passage(0.2, 0.1, 1.0, 0.5)])
    assert (found.kl.pairs, found.scored) == (3, 150)
    assert (found.kl.mean, found.changed.mean, found.lost.mean) == pytest.approx((0.2, 0.2, -0.25 / 3))
    assert found.kl.interval == t_interval([0.1, 0.3, 0.2]) and found.changed.interval == t_interval([0.2, 0.3, 0.1])
    assert found.lost.interval == t_interval([0.25, 0.0, -0.5]), "right with dense minus right with sparse attention"
    assert found.right_before == pytest.approx(0.5)
    unchanged = summarise([passage(0.0, 0.0, 1.0, 1.0)] * 4)
    assert unchanged.changed.interval == wilson(0, 200), "no change in any passage has an interval of positive width"
    assert unchanged.lost.interval == paired_interval(0, 0, 200)
    mixed = summarise([passage(0.0, 0.1, 0.5, 0.7), passage(0.0, 0.1, 0.5, 0.7), passage(0.0, 0.1, 0.6, 0.3)] * 2)
    both = t_interval([0.2, 0.2, -0.3] * 2), paired_interval(40, 30, 300)
    widest = min(one.low for one in both), max(one.high for one in both)
    assert (mixed.lost.interval.low, mixed.lost.interval.high) == pytest.approx(widest)
    assert mixed.changed.interval == wilson(30, 300), "equal passages"


@torch.no_grad()
def test_a_model_without_selection_is_refused_and_the_budget_is_restored() -> None:
    with pytest.raises(ConfigError, match="its attention is of kind mla"):
        measure_damage(model_of(kind="mla", vocab=VOCAB), windows(), BUDGET)
    model = model_of(vocab=VOCAB)
    assert measure_damage(model, windows(20), 20) == measure_damage(model_of(20, vocab=VOCAB), windows(20), 20)
    assert [layer.attention.config.index_topk for layer in model.layers] == [BUDGET] * 2  # type: ignore[union-attr]


@torch.no_grad()
def test_the_dense_weights_of_a_query_are_those_of_all_its_positions() -> None:
    model, tokens = model_of(vocab=VOCAB), torch.tensor([windows()[0].tokens[:-1]])
    recorded = model(tokens, record=("attention_rows", "attention_mass")).recorded
    for rows, mass in zip(recorded["attention_rows"], recorded["attention_mass"], strict=True):
        for t in (0, 5, LENGTH - 1):
            assert sorted(row for row in rows[t].tolist() if row >= 0) == list(range(t + 1))
            assert float(mass[t][rows[t] >= 0].sum()) == pytest.approx(1, abs=1e-5)


def test_the_dense_reference_ignores_the_adaptive_budget() -> None:
    """The same weights with another `index_top_p` have the same dense loss, and miss more."""

    def dense_loss_and_inside(model: object) -> tuple[Tensor, Tensor]:
        damage, layers = measure_damage(model, windows(), BUDGET)  # type: ignore[arg-type]
        return torch.tensor([one.loss_before for one in damage]), torch.tensor([layer.inside for layer in layers])

    model = model_of(vocab=VOCAB)
    fixed = dense_loss_and_inside(model)
    for layer in model.layers:
        assert isinstance(layer.attention, DSA)
        layer.attention.config = layer.attention.config.model_copy(update={"index_top_p": 0.5})
    adaptive = dense_loss_and_inside(model)
    torch.testing.assert_close(adaptive[0], fixed[0])
    assert bool((adaptive[1] < fixed[1]).all())
    assert [layer.attention.config.index_top_p for layer in model.layers] == [0.5, 0.5]  # type: ignore[union-attr]
