"""Auxiliary-loss-free load balancing: router biases move after each update (DeepSeek-V3, section 2.1.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rorqual.core.config import Config, NonNegative
from rorqual.model.ffn import FFN
from rorqual.ops.moe import Routing, aimed_load


class Balance(Config):
    """`gamma` is the bias step per update: down for experts above the router's `target_load`, up for those below."""

    gamma: NonNegative = 0.001


def count(routing: Routing, valid: Tensor, n_choices: int) -> Tensor:
    """Return the number of tokens that each expert served [choices]. `valid` [tokens] excludes padding."""
    served = routing.indices + 1  # SKIP, which is -1, is counted at 0
    counts = valid.new_zeros(n_choices + 1, dtype=torch.long)
    return counts.scatter_add_(0, served.flatten(), valid.long().unsqueeze(-1).expand_as(served).flatten())[1:]


def move_bias(routers: Sequence[FFN], counts: Sequence[Tensor], gamma: float) -> None:
    """Move the biases of every router by one step, from the loads of the whole update."""
    for router, load in zip(routers, counts, strict=True):
        router.balance(load, gamma)


def load_ratio(counts: Sequence[Tensor], targets: Sequence[Tensor | None] = ()) -> float:
    """Return the largest load relative to its target, averaged over layers. 1 is perfect balance.

    `targets` holds each router's `target_load`; without it, every target is the mean load.
    """
    ratios = []
    for load, target in zip(counts, targets or [None] * len(counts), strict=True):
        if int(load.sum()):
            aimed = aimed_load(load, target)
            ratios.append(float((load[aimed > 0] / aimed[aimed > 0]).max()))
    return sum(ratios) / len(ratios) if ratios else 1.0
