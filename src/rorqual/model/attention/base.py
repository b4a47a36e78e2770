"""What every attention kind offers: a config that builds, accounts for and describes the cache of its module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from rorqual.core.config import Kind
from rorqual.core.errors import ConfigError
from rorqual.model.cost import Cost
from rorqual.ops.backends import Backend
from rorqual.ops.layer import Layer
from rorqual.ops.rope import Rope, rope_table, spread


@dataclass(frozen=True)
class CachePart:
    """A tensor that a layer keeps of each token, under `name`: `heads` vectors of `width` values, of type `dtype` (None: the model's)."""

    name: str
    heads: int
    width: int
    dtype: torch.dtype | None = None

    def token_bytes(self, dtype: torch.dtype) -> int:
        """Bytes for one token, in a model of type `dtype`."""
        return self.heads * self.width * (self.dtype or dtype).itemsize


def check_parts(given: Collection[str], kept: Collection[str]) -> None:
    """Raise ValueError where the parts that a layer writes are not those of its `cache_spec`."""
    if set(given) != set(kept):
        raise ValueError(f"a layer writes the parts {sorted(given)}; its cache_spec names {sorted(kept)}")


class LayerCache(Protocol):
    """The parts that one layer keeps, for the tokens of one forward."""

    def write(self, parts: Mapping[str, Tensor]) -> None:
        """Keep a tensor [tokens, heads, width] for each part of the kind's `cache_spec`, by name.

        The engine's cache raises ValueError where the names are not those of the spec. A part that nobody attends to is kept like any other.
        """

    def attend(self, q: Tensor, keys: str, values: str, scale: float, *, value_width: int | None = None) -> Tensor:
        """Attend from every token to its sequence up to itself, over what was written.

        q [tokens, heads, queries of a head, d]; `keys` and `values` name parts, which may be one; of the values the first `value_width`
        columns count (None: all). Returns [tokens, heads, queries of a head, value_width].
        """


@dataclass
class AttentionContext:
    """What the layers of one forward share: positions [batch, seq], mask [batch, 1, queries, keys], operations, angles.

    `table` [positions, dim / 2] of cosines and sines by (rope, dim), where the caller has them; else they are computed once a forward.
    The mask is None where a cache knows who sees whom.
    """

    positions: Tensor
    mask: Tensor | None
    ops: Backend
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


class Attention(Layer, ABC):
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

    def decode_flops(self, hidden_size: int, context: float) -> float:
        """FLOPs by which attending to `context` cached keys adds to a token that is decoded, in the form that generation uses."""
        return self.cost(hidden_size, round(context)).flops - self.cost(hidden_size, 0).flops

    def saved_values(self, hidden_size: int, *, everything: bool) -> int:
        """Values a token that training saves for the backward, beside the residual stream: what enters attention and what comes out of it;
        with `everything` also the normed input and whatever else is not computed again."""
        raise ConfigError(
            f"no account of what attention '{self.kind}' saves",
            where="plan",
            remedy="Plan its serving, or add it there.",
        )

    def split_by_tp(self) -> dict[str, int]:
        """What tensor parallelism divides, by its name in the config."""
        return {}

    def cache_spec(self) -> tuple[CachePart, ...]:
        """The parts that a layer keeps of each token, each with a name of its own."""
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

    def forward(self, x: Tensor, ops: Backend) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)
