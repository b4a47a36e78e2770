"""What sparse attention changes of a model's predictions, and which positions it misses.

Predictions with sparse attention are compared with predictions with dense attention, on the same tokens. The share of attention on
selected positions explains a change of predictions, but it is not damage: a model may not need the positions that are missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rorqual.core.errors import ConfigError
from rorqual.evals.damage import PassageDamage, compare_predictions
from rorqual.evals.stats import Floats
from rorqual.model.attention.dsa import ATTENTION_ERROR_NAMES, DSA
from rorqual.model.decoder import Decoder


@dataclass(frozen=True)
class Passage:
    """A passage of n tokens, as n + 1 ids: the last id is only a target.

    `queries` are the positions whose attention is measured. `scored` are the queries whose next-token predictions are compared.
    `sought` are the positions to which the queries should attend: a planted text, or all positions.
    """

    tokens: tuple[int, ...]
    queries: range
    scored: range
    sought: range

    @property
    def length(self) -> int:
        """Number of tokens that the model reads."""
        return len(self.tokens) - 1


@dataclass(frozen=True)
class LayerSelection:
    """Which positions the sparse attention of one layer misses, averaged over queries.

    - `attention`: share of the dense attention, averaged over heads, on the positions that the queries should attend to.
    - `inside`: fraction of `attention` that lies on selected positions.
    - `recall`: fraction of the top `index_topk` positions (by dense attention weight) that are selected.
    - `weighted_recall`: fraction of the dense attention on these positions that lies on selected positions.
    - `difference`: |sparse - dense| / |dense|, where sparse and dense are the outputs of the attention module.
    """

    attention: float
    inside: float
    recall: float
    weighted_recall: float
    difference: float


def sparse_layers(model: Decoder, where: str = "") -> list[DSA]:
    """Return the DSA modules of the main model, but not of MTP modules. Raises ConfigError if the model has no DSA modules."""
    found = [module for module in model.layers.modules() if isinstance(module, DSA)]
    if not found:
        kinds = ", ".join(sorted({attention.kind for attention in model.config.attentions}))
        raise ConfigError(
            f"this model has no indexer whose selection can be measured (its attention is of kind {kinds})",
            where=where,
            remedy="Use a model with attention of kind dsa, such as the result of `rorqual sparsify`.",
        )
    return found


def trained_budget(layers: Sequence[DSA]) -> int:
    """Return the `index_topk` that all DSA modules share. Raises ConfigError if `index_topk` differs between the modules."""
    budgets = sorted({layer.config.index_topk for layer in layers})
    if len(budgets) > 1:
        raise ConfigError(
            f"the layers have different values of index_topk: {', '.join(map(str, budgets))}",
            remedy="Measure a model whose layers share one index_topk.",
        )
    return budgets[0]


@torch.no_grad()
def measure_damage(
    model: Decoder, passages: Sequence[Passage], budget: int
) -> tuple[list[PassageDamage], list[LayerSelection]]:
    """Measure what sparse attention changes at `budget` selected positions: one entry for each passage, and one for each layer.

    Each query of a passage must see more than `budget` positions. Memory grows with the square of a passage's length. Raises
    ConfigError if the model has no sparse attention.
    """
    layers = sparse_layers(model)
    device = next(model.parameters()).device
    found, sums = list[PassageDamage](), np.zeros((len(layers), 5))
    for passage in passages:
        tokens = torch.tensor(passage.tokens, device=device)
        recorded, *hidden = _run_sparse_and_dense(model, layers, tokens[None, :-1], budget)
        scored = slice(passage.scored.start, passage.scored.stop)
        targets = tokens[1:][scored]
        sparse, dense = (model.logits(states[scored]).log_softmax(-1) for states in hidden)
        found.append(compare_predictions(dense, sparse, targets))
        for layer, total in enumerate(sums):
            total += _sums_over_queries({name: part[layer] for name, part in recorded.items()}, passage, budget)
    queries = sum(len(passage.queries) for passage in passages)
    return found, [_layer_selection(total, queries) for total in sums]


def _layer_selection(sums: Floats, queries: int) -> LayerSelection:
    attention, inside, *rest = sums.tolist()
    return LayerSelection(
        attention / queries, inside / attention if attention else 1.0, *(value / queries for value in rest)
    )


def _run_sparse_and_dense(
    model: Decoder, layers: Sequence[DSA], tokens: Tensor, budget: int
) -> tuple[Mapping[str, Sequence[Tensor]], Tensor, Tensor]:
    """Run tokens [1, length] with sparse and with dense attention. Return the records and the hidden states of the sparse run,
    and the hidden states of the dense run."""
    with _temporary_budget(layers, budget):
        sparse = model(tokens, record=(*ATTENTION_ERROR_NAMES, "selected"))
    with _temporary_budget(layers, tokens.shape[1], dense=True):
        return sparse.recorded, sparse.hidden[0], model(tokens).hidden[0]


@contextmanager
def _temporary_budget(layers: Sequence[DSA], budget: int, *, dense: bool = False) -> Iterator[None]:
    """Set `index_topk` of the DSA modules in `layers` to `budget` inside the `with` block.

    With `dense`, `index_top_p` is ignored, so attention is dense for each query that sees at most `budget` positions.
    """
    before = [layer.config for layer in layers]
    for layer in layers:
        top_p = 1.0 if dense else layer.config.index_top_p
        layer.config = layer.config.model_copy(update={"index_topk": budget, "index_top_p": top_p})
    try:
        yield
    finally:
        for layer, config in zip(layers, before, strict=True):
            layer.config = config


def _sums_over_queries(recorded: Mapping[str, Tensor], passage: Passage, budget: int) -> Floats:
    """Return the values of `LayerSelection` for one passage, summed over queries. The second value is the attention to sought
    positions that lies on selected positions."""
    queries = slice(passage.queries.start, passage.queries.stop)
    weights, chosen = _weights_and_selection(recorded, queries)
    best = recorded["attention_rows"][queries, :budget].cpu()
    kept, top = chosen.gather(1, best), weights.gather(1, best)
    sought = slice(passage.sought.start, passage.sought.stop)
    sums = (
        weights[:, sought].sum(),
        (weights * chosen)[:, sought].sum(),
        kept.double().mean(1).sum(),
        ((top * kept).sum(1) / top.sum(1)).sum(),
        recorded["output_difference"][queries].sum(),
    )
    return np.array([float(value) for value in sums])


def _weights_and_selection(recorded: Mapping[str, Tensor], queries: slice) -> tuple[Tensor, Tensor]:
    """Return two matrices [queries, length] from the records of one layer: the dense attention
    weights, averaged over heads, and whether each position is selected."""
    rows, mass, selected = (recorded[name][queries].cpu() for name in ("attention_rows", "attention_mass", "selected"))
    length = recorded["attention_rows"].shape[1]
    weights = torch.zeros(len(rows), length + 1, dtype=torch.double)  # the last column stands for -1, no position
    weights.scatter_(1, rows % (length + 1), mass.double().masked_fill(rows < 0, 0))
    chosen = torch.zeros_like(weights, dtype=torch.bool).scatter_(1, selected % (length + 1), True)
    return weights[:, :length], chosen[:, :length]
