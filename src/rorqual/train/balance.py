"""Balance of experts without an auxiliary loss: the router bias moves after each update (V3, section 2.1.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rorqual.core.config import Config, NonNegative
from rorqual.model.ffn import FFN
from rorqual.ops.moe import Routing, aimed_load


class Balance(Config):
    """`gamma`: by how much a bias moves an update, down where its expert served more than its router's `target_load`, up where less."""

    gamma: NonNegative = 0.001


def count(routing: Routing, valid: Tensor, n_choices: int) -> Tensor:
    """Tokens by choice [choices]: those that each expert served; `valid` [tokens] leaves padding out."""
    chosen = routing.indices[valid].flatten()
    return torch.bincount(chosen[chosen >= 0] if routing.skips else chosen, minlength=n_choices)


def move_bias(routers: Sequence[FFN], counts: Sequence[Tensor], gamma: float) -> None:
    """One step of every router's balance, over the whole update's tokens."""
    for router, load in zip(routers, counts, strict=True):
        router.balance(load, gamma)


def load_ratio(counts: Sequence[Tensor], targets: Sequence[Tensor | None] = ()) -> float:
    """Largest load over the load that balance aims at, mean over layers: 1 is perfect balance.

    targets: `target_load` of each router; none: every one aims at the mean.
    """
    ratios = []
    for load, target in zip(counts, targets or [None] * len(counts), strict=True):
        if int(load.sum()):
            aimed = aimed_load(load, target)
            ratios.append(float((load[aimed > 0] / aimed[aimed > 0]).max()))
    return sum(ratios) / len(ratios) if ratios else 1.0
