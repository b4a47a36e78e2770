"""Balance of experts without an auxiliary loss: the router bias moves after each update (V3, section 2.1.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rorqual.core.config import Config, NonNegative
from rorqual.model.ffn import FFN
from rorqual.ops.moe import Routing


class Balance(Config):
    """`gamma`: by how much a bias moves an update, down where its expert served more than the mean, up where less."""

    gamma: NonNegative = 0.001


def count(routing: Routing, valid: Tensor, n_experts: int) -> Tensor:
    """Tokens that each expert served [experts]; `valid` [tokens] leaves padding out."""
    chosen = routing.indices[valid].flatten()
    return torch.bincount(chosen[chosen >= 0] if routing.skips else chosen, minlength=n_experts)


def move_bias(routers: Sequence[FFN], counts: Sequence[Tensor], gamma: float) -> None:
    """One step of every router's balance, over the whole update's tokens."""
    for router, load in zip(routers, counts, strict=True):
        router.balance(load, gamma)


def load_ratio(counts: Sequence[Tensor]) -> float:
    """Largest load over mean load, mean over layers: 1 is perfect balance."""
    ratios = [float(c.max() / c.float().mean()) for c in counts if int(c.sum())]
    return sum(ratios) / len(ratios) if ratios else 1.0
