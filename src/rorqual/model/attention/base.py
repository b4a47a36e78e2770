"""What every attention kind offers: a config that builds, accounts for and describes the cache of its module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from rorqual.core.config import Kind
from rorqual.model.cost import Cost
from rorqual.ops.registry import Ops
from rorqual.ops.rope import Rope, rope_table


class LayerCache(Protocol):
    """One layer's cache for the rows of a batch."""

    def append(self, positions: Tensor, values: Tensor) -> Tensor:
        """Store values [batch, new, width] at positions [batch, new]; return all rows [batch, keys, width], the new included."""


@dataclass
class AttentionContext:
    """What the layers of one forward share: positions [batch, seq], mask [batch, 1, queries, keys], operations, angles."""

    positions: Tensor
    mask: Tensor
    ops: Ops
    absorb: bool | None = None
    _tables: dict[tuple[Rope, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def rope(self, rope: Rope, dim: int) -> tuple[Tensor, Tensor]:
        """cos and sin [batch, seq, 1, dim / 2], computed once a forward."""
        if (rope, dim) not in self._tables:
            cos, sin = rope_table(rope, dim, self.positions)
            self._tables[rope, dim] = (cos.unsqueeze(2), sin.unsqueeze(2))
        return self._tables[rope, dim]


class Attention(nn.Module, ABC):
    """x [batch, seq, hidden] -> [batch, seq, hidden]."""

    @abstractmethod
    def forward(self, x: Tensor, context: AttentionContext, cache: LayerCache | None) -> Tensor: ...


class AttentionConfig(Kind):
    """Base of the attention kinds."""

    def build(self, hidden_size: int, eps: float) -> Attention:
        """The module."""
        raise NotImplementedError

    def cost(self, hidden_size: int, context: int) -> Cost:
        """Parameters, and FLOPs a token in the form that training uses, with `context` keys attended."""
        raise NotImplementedError

    def cache_width(self) -> int:
        """Values kept for a token in one layer."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise ValueError where the dimensions contradict each other."""


class RMSNorm(nn.Module):
    """RMS normalisation with a learned weight [dim]."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor, ops: Ops) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)
