"""What every attention kind offers: a config that builds, accounts for and describes the cache of its module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from rorqual.core.config import Kind
from rorqual.model.cost import Cost
from rorqual.ops.registry import Ops
from rorqual.ops.rope import Rope, rope_table, spread


@dataclass(frozen=True)
class CachePart:
    """What a layer keeps of a token: `heads` vectors of `width` values."""

    heads: int
    width: int


class LayerCache(Protocol):
    """One layer's keys and values, for the tokens of one forward."""

    def attend(self, q: Tensor, new: Sequence[Tensor], values: int, scale: float) -> Tensor:
        """Keep what is new, then let every token attend to its sequence up to itself.

        q [tokens, heads, queries of a head, d]; `new` one tensor [tokens, heads, width] for each part of the kind's `cache_spec`. Keys are
        the first part; values the second or, where there is none, the first `values` columns of the keys. Returns
        [tokens, heads, queries of a head, values].
        """


@dataclass
class AttentionContext:
    """What the layers of one forward share: positions [batch, seq], mask [batch, 1, queries, keys], operations, angles.

    `table` [positions, dim / 2] of cosines and sines by (rope, dim), where the caller has them; else they are computed once a forward.
    The mask is None where a cache knows who sees whom.
    """

    positions: Tensor
    mask: Tensor | None
    ops: Ops
    table: Callable[[Rope, int], tuple[Tensor, Tensor]] | None = None
    _angles: dict[tuple[Rope, int, bool], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def rope(self, rope: Rope, dim: int, *, interleaved: bool) -> tuple[Tensor, Tensor]:
        """cos and sin [batch, seq, 1, dim], for `rotate`."""
        known = (rope, dim, interleaved)
        if known not in self._angles:
            if self.table is None:
                cos, sin = rope_table(rope, dim, self.positions)
            else:
                cos, sin = (t[self.positions] for t in self.table(rope, dim))
            self._angles[known] = spread(cos.unsqueeze(2), sin.unsqueeze(2), interleaved=interleaved)
        return self._angles[known]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention among the tokens themselves: q [batch, heads, queries, d], k and v [batch, heads, keys, d or d_v]."""
        assert self.mask is not None
        return self.ops.attend(q, k, v, self.mask, scale)


class Attention(nn.Module, ABC):
    """x [batch, seq, hidden] -> [batch, seq, hidden].

    `joined`: names of linear maps without a module of their own, and those whose outputs side by side such a map gives, where an engine has
    laid them out as one (`engine/packed.py`).
    """

    joined: Mapping[str, tuple[str, ...]] = {}

    def lay_out(self) -> None:
        """Make of a copy that nobody trains what reads fastest."""

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

    def cache_spec(self) -> tuple[CachePart, ...]:
        """What is kept for a token in one layer: keys and values, or what both are read from."""
        raise NotImplementedError

    def cache_width(self) -> int:
        """Values kept for a token in one layer."""
        return sum(part.heads * part.width for part in self.cache_spec())

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
