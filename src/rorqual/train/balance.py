"""Auxiliary-loss-free load balancing: each update adjusts the router biases (DeepSeek-V3, section 2.1.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rorqual.core.config import Config, NonNegative
from rorqual.model.ffn import FFN
from rorqual.ops.moe import Routing, expected_load


class BalanceConfig(Config):
    """Settings of load balancing. Each update changes the router bias of an expert by `gamma`: down if the expert is
    overloaded, up if it is underloaded."""

    gamma: NonNegative = 0.001


def count_tokens_per_expert(routing: Routing, valid: Tensor, n_choices: int) -> Tensor:
    """Return the number of tokens routed to each expert [n_choices]. `valid` [tokens] is False for padding."""
    served = routing.indices + 1  # index 0 counts SKIP (-1); `[1:]` drops this count
    counts = valid.new_zeros(n_choices + 1, dtype=torch.long)
    return counts.scatter_add_(0, served.flatten(), valid.long().unsqueeze(-1).expand_as(served).flatten())[1:]


def update_router_biases(routers: Sequence[FFN], counts: Sequence[Tensor], gamma: float) -> None:
    """Update the bias of every router once. For each router, `counts` holds the number of tokens per expert in the last
    update.

    The arithmetic of the bias update is `GroupedTopK.balance` (model/ffn/router/grouped_topk.py). Routers with identity experts
    have their own, `ZeroExperts.balance`.
    """
    for router, load in zip(routers, counts, strict=True):
        router.balance(load, gamma)


def load_ratio(counts: Sequence[Tensor], targets: Sequence[Tensor | None] = ()) -> float:
    """Return the largest ratio of an expert's load to its target, averaged over layers. A ratio of 1 means perfect balance.

    `targets` holds the `target_load` of each router. Without `targets`, the target of every expert is the mean load.
    """
    ratios = []
    for load, target in zip(counts, targets or [None] * len(counts), strict=True):
        if int(load.sum()):
            target_counts = expected_load(load, target)
            ratios.append(float((load[target_counts > 0] / target_counts[target_counts > 0]).max()))
    return sum(ratios) / len(ratios) if ratios else 1.0
