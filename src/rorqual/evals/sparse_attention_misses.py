"""What sparse attention misses: how much dense attention lies outside the selected positions, and how much the output
of the attention module changes.

At each layer, dense attention is computed on the same inputs as sparse attention. A query that sees at most `index_topk`
positions selects all these positions and misses nothing. `SelectionMisses.dense` counts the queries that select all their
positions, but no average includes these queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rorqual.core.errors import ConfigError, DataError
from rorqual.model.attention.dsa import ATTENTION_ERROR_NAMES, DSA
from rorqual.model.decoder import Decoder
from rorqual.ops.losses import token_logprobs

DISTANCES = (0, 1, 16, 64, 256, 1024, 4096, 16384, 65536, 1 << 20)
"""Smallest distance of each range of distances between a query and a position, in tokens. Distance 0 is the query's own
position."""


@dataclass(frozen=True)
class DistanceRange:
    """The dense attention at distances from `first` to `last` tokens. `share` is the part of all dense attention at
    these distances, and `inside` is the fraction of `share` on selected positions."""

    first: int
    last: int
    share: float
    inside: float


@dataclass(frozen=True)
class LayerSelectionMisses:
    """What the sparse attention of one layer misses, over all queries that see more than `index_topk` positions.

    - `mass`: share of the dense attention that lies on selected positions, averaged over heads. `mass_p1` is the first
      percentile of `mass` over queries. `heads` is the mean `mass` of each head.
    - `recall`: fraction of the top `index_topk` positions (by dense attention weight) that sparse attention selects.
    - `weighted_recall`: fraction of the dense attention on the top `index_topk` positions that lies on selected positions. For
      one head, `weighted_recall` equals `mass` divided by the `mass` of the best selection. For several heads, the attention
      weights are averaged over heads first.
    - `difference`: |sparse - dense| / |dense|, where sparse and dense are the outputs of the attention module.
    - `tied`: share of the selected positions with the same index score as the best unselected position.
    """

    layer: int
    mass: float
    mass_p1: float
    recall: float
    weighted_recall: float
    difference: float
    tied: float
    heads: tuple[float, ...]
    distances: tuple[DistanceRange, ...]


@dataclass(frozen=True)
class LeastCoveredQuery:
    """The query with the lowest share of dense attention on selected positions (`mass`, averaged over heads).

    `layer` and `window` are indices. `tokens` are the token ids at the positions that the query sees. The last token is the
    query's own token. `weights` are the dense attention weights of these positions, averaged over heads. `selected` are the
    selected positions. `missed` are the positions that are not selected although their weights are among the `index_topk`
    largest weights.
    """

    layer: int
    window: int
    mass: float
    tokens: tuple[int, ...]
    weights: tuple[float, ...]
    selected: tuple[int, ...]
    missed: tuple[int, ...]


@dataclass(frozen=True)
class SelectionMisses:
    """What a model with sparse attention misses on some windows of tokens, at a budget of `budget` positions.

    `queries` is the number of queries that see more than `budget` positions, and `dense` is the number of queries that see at
    most `budget` positions. `kl` is KL(dense || sparse) of the next-token distribution, in nats. `flips` is the share of
    queries whose most likely next token changes. `loss_dense` and `loss_sparse` are the next-token losses with dense and with
    sparse attention, in nats.
    """

    budget: int
    length: int
    windows: int
    queries: int
    dense: int
    kl: float
    flips: float
    loss_dense: float
    loss_sparse: float
    layers: tuple[LayerSelectionMisses, ...]
    lowest: LeastCoveredQuery

    @property
    def mean_selected_mass(self) -> float:
        """The mean of `mass` over the layers."""
        return sum(layer.mass for layer in self.layers) / len(self.layers)

    @property
    def recall(self) -> float:
        """The lowest `recall` among the layers."""
        return min(layer.recall for layer in self.layers)

    @property
    def weighted_recall(self) -> float:
        """The lowest `weighted_recall` among the layers."""
        return min(layer.weighted_recall for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Return all measured values as JSON."""
        return asdict(self) | {"recall": self.recall, "weighted_recall": self.weighted_recall}


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


@contextmanager
def temporary_budget(layers: Sequence[DSA], budget: int, *, dense: bool = False) -> Iterator[None]:
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


def run_sparse_and_dense(
    model: Decoder, layers: Sequence[DSA], tokens: Tensor, budget: int
) -> tuple[Mapping[str, Sequence[Tensor]], Tensor, Tensor]:
    """Run tokens [1, length] with sparse and with dense attention. Return the records and the hidden states of the sparse run,
    and the hidden states of the dense run."""
    with temporary_budget(layers, budget):
        sparse = model(tokens, record=(*ATTENTION_ERROR_NAMES, "selected"))
    with temporary_budget(layers, tokens.shape[1], dense=True):
        return sparse.recorded, sparse.hidden[0], model(tokens).hidden[0]


@torch.no_grad()
def measure_selection_misses(model: Decoder, tokens: Tensor, where: str = "", budget: int = 0) -> SelectionMisses:
    """Measure what sparse attention misses on `tokens` [windows, length + 1] at `budget` positions (0: the model's index_topk).

    Each window is run as one sequence. Memory grows with the square of `length`. Raises ConfigError if the model has no sparse
    attention, and DataError if the windows are not longer than the budget.
    """
    layers, length = sparse_layers(model, where), tokens.shape[1] - 1
    budget = budget or trained_budget(layers)
    if length <= budget:
        raise DataError(
            f"windows of {length} tokens are not longer than index_topk={budget}, so nothing can be missed",
            where=where,
            remedy=f"Use a length= of more than {budget}, and a text that is long enough.",
        )
    collected = [_LayerSums(budget) for _ in layers]
    kl, flips, losses = 0.0, 0, np.zeros(2)
    for window in tokens:
        inputs, targets = window[None, :-1], window[1:]
        recorded, *hidden = run_sparse_and_dense(model, layers, inputs, budget)
        sparse_logprobs, dense_logprobs = (model.logits(states[budget:]).log_softmax(-1) for states in hidden)
        kl += float((dense_logprobs.exp() * (dense_logprobs - sparse_logprobs)).sum())
        flips += int((dense_logprobs.argmax(-1) != sparse_logprobs.argmax(-1)).sum())
        for index, logits in enumerate((dense_logprobs, sparse_logprobs)):
            losses[index] -= float(token_logprobs(logits, targets[budget:]).double().sum())
        for layer, found in enumerate(collected):
            found.add({name: values[layer] for name, values in recorded.items()})
    queries = len(tokens) * (length - budget)
    return SelectionMisses(
        budget=budget,
        length=length,
        windows=len(tokens),
        queries=queries,
        dense=len(tokens) * budget,
        kl=kl / queries,
        flips=flips / queries,
        loss_dense=float(losses[0]) / queries,
        loss_sparse=float(losses[1]) / queries,
        layers=tuple(found.layer_misses(index) for index, found in enumerate(collected)),
        lowest=_least_covered_query(collected, tokens),
    )


def weights_and_selection(recorded: Mapping[str, Tensor], queries: slice) -> tuple[Tensor, Tensor]:
    """Return two matrices [queries, length] from the records of one layer: the dense attention
    weights, averaged over heads, and whether each position is selected."""
    rows, mass, selected = (recorded[name][queries].cpu() for name in ("attention_rows", "attention_mass", "selected"))
    length = recorded["attention_rows"].shape[1]
    weights = torch.zeros(len(rows), length + 1, dtype=torch.double)  # the last column stands for -1, no position
    weights.scatter_(1, rows % (length + 1), mass.double().masked_fill(rows < 0, 0))
    chosen = torch.zeros_like(weights, dtype=torch.bool).scatter_(1, selected % (length + 1), True)
    return weights[:, :length], chosen[:, :length]


def _least_covered_query(collected: Sequence[_LayerSums], tokens: Tensor) -> LeastCoveredQuery:
    """Return the query with the lowest `mass` of all layers and windows. `tokens` are the windows [windows, length + 1]."""
    layer = min(range(len(collected)), key=lambda index: collected[index].lowest.mass)
    found = collected[layer].lowest
    return replace(found, layer=layer, tokens=tuple(tokens[found.window, : len(found.weights)].tolist()))


class _LayerSums:
    """The running sums and the per-query values of one layer, over all windows added so far."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.mass, self.recall, self.difference = list[Tensor](), list[Tensor](), list[Tensor]()
        self.weighted_recall, self.heads, self.tied = list[Tensor](), list[Tensor](), 0
        self.share, self.inside = np.zeros(len(DISTANCES)), np.zeros(len(DISTANCES))
        self.windows = 0
        self.lowest = LeastCoveredQuery(0, 0, np.inf, (), (), (), ())

    def add(self, recorded: dict[str, Tensor]) -> None:
        """Add the records of one window. Queries that see at most `budget` positions are left out."""
        k, length = self.budget, len(recorded["attention_rows"])
        weights, chosen = weights_and_selection(recorded, slice(k, length))
        best = recorded["attention_rows"][k:, :k].cpu()
        kept, top = chosen.gather(1, best), weights.gather(1, best)
        self.heads.append(recorded["mass_inside"][k:].cpu())
        self.mass.append(self.heads[-1].mean(1))
        self.recall.append(kept.float().mean(1))
        self.weighted_recall.append((top * kept).sum(1) / top.sum(1))
        self.difference.append(recorded["output_difference"][k:].cpu())
        self.tied += int(recorded["tied"][k:].sum())
        distance = (torch.arange(k, length).unsqueeze(1) - torch.arange(length)).clamp(min=0)  # later positions weigh 0
        place = torch.bucketize(distance, torch.tensor(DISTANCES), right=True).flatten() - 1
        for total, values in ((self.share, weights), (self.inside, weights * chosen)):
            total += torch.bincount(place, values.flatten(), len(DISTANCES)).numpy()
        worst = int(self.mass[-1].argmin())
        if (share_inside := float(self.mass[-1][worst])) < self.lowest.mass:
            seen = tuple(weights[worst, : k + worst + 1].tolist())
            selected, missed = chosen[worst].nonzero().flatten().tolist(), sorted(best[worst][~kept[worst]].tolist())
            self.lowest = LeastCoveredQuery(0, self.windows, share_inside, (), seen, tuple(selected), tuple(missed))
        self.windows += 1

    def layer_misses(self, layer: int) -> LayerSelectionMisses:
        """Return what the layer misses, averaged over all added windows. `layer` is the index of the layer."""
        mass, recall, weighted_recall, difference = (
            torch.cat(part).float().numpy() for part in (self.mass, self.recall, self.weighted_recall, self.difference)
        )
        ends = (*(first - 1 for first in DISTANCES[1:]), 1 << 30)
        ranges = (
            DistanceRange(first, last, float(share / len(mass)), float(inside / share))
            for first, last, share, inside in zip(DISTANCES, ends, self.share, self.inside)
            if share > 0
        )
        return LayerSelectionMisses(
            layer=layer,
            mass=float(mass.mean()),
            mass_p1=float(np.percentile(mass, 1)),
            recall=float(recall.mean()),
            weighted_recall=float(weighted_recall.mean()),
            difference=float(difference.mean()),
            tied=self.tied / (len(mass) * self.budget),
            heads=tuple(torch.cat(self.heads).float().mean(0).tolist()),
            distances=tuple(ranges),
        )
