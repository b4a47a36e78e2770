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
from rorqual.ops.paged import BLOCK, Selection
from rorqual.ops.rope import Rope, rope_table, spread


@dataclass(frozen=True)
class CachePart:
    """A tensor that a layer keeps under `name`: `heads` vectors of `width` values, of type `dtype` (None: the model's).

    Rows are rounded to `dtype` when they are written, and read in the type in which they were given, by the trainer too.

    `every` 1: a row for each token. `every` n: a row for each complete group of n tokens, those at positions i n .. i n + n - 1 of a sequence.
    n divides `BLOCK`.
    """

    name: str
    heads: int
    width: int
    dtype: torch.dtype | None = None
    every: int = 1

    @property
    def values(self) -> float:
        """Values for one token; exact, since `every` is a power of two."""
        return self.heads * self.width / self.every


@dataclass(frozen=True)
class CacheLayout:
    """The parts of an attention kind's `cache_spec`, by name. `CacheLayout.of` raises ValueError where the spec contradicts itself."""

    kind: str
    parts: Mapping[str, CachePart]
    writes: frozenset[frozenset[str]]
    """What one write may give: all parts with the same `every`."""

    @classmethod
    def of(cls, config: AttentionConfig) -> CacheLayout:
        """The layout of a kind. Two parts of one name, and an `every` that does not divide `BLOCK`, are errors."""
        spec = config.cache_spec()
        parts = {part.name: part for part in spec}
        if len(parts) < len(spec):
            raise ValueError(f"two parts of the cache of kind '{config.kind}' have one name")
        for part in spec:
            if part.every < 1 or BLOCK % part.every:
                raise ValueError(
                    f"part '{part.name}' of the cache of kind '{config.kind}' has a row for every {part.every} tokens, which does not divide "
                    f"a block of {BLOCK}"
                )
        writes = (frozenset(part.name for part in spec if part.every == every) for every in {p.every for p in spec})
        return cls(config.kind, parts, frozenset(writes))

    def part(self, name: str) -> CachePart:
        """The part of that name, or ValueError."""
        if name not in self.parts:
            raise ValueError(
                f"attention kind '{self.kind}' asks for the cached part '{name}'; its cache_spec names {sorted(self.parts)}"
            )
        return self.parts[name]

    def check_write(self, given: Collection[str]) -> None:
        """Raise ValueError unless the parts that a layer writes are all those with one `every`."""
        if frozenset(given) not in self.writes:
            raise ValueError(
                f"attention kind '{self.kind}' writes the parts {sorted(given)}; its cache_spec names {sorted(self.parts)}, and a write gives "
                "all parts with the same `every`"
            )


class LayerCache(Protocol):
    """The parts that one layer keeps, for the tokens of one forward. Names that are not in the kind's `cache_spec` are a ValueError.

    A forward writes first and reads then: what it reads includes its own tokens.
    """

    def write(self, parts: Mapping[str, Tensor]) -> None:
        """Keep a tensor for each part with the same `every`, by name: [tokens, heads, width] for a row a token; else [groups, heads, width],
        for the groups that `groups` gave.

        A part that nobody attends to is kept like any other.
        """

    def groups(self, part: str, every: int) -> tuple[Tensor, Tensor]:
        """The groups of `every` tokens that this forward's tokens complete, earlier tokens from the cache: rows of `part`, which has one for
        each token, [groups, every, heads, width]; and the number, among this forward's tokens, of each group's last [groups].

        There are some groups more than complete ones, as products need them; what `write` is given of these is not kept.
        """

    def attend(
        self,
        q: Tensor,
        keys: str,
        values: str,
        scale: float,
        *,
        value_width: int | None = None,
        selected: Selection | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Attend from every token to its sequence up to itself, over what was written.

        q [tokens, heads, queries of a head, d]; `keys` and `values` name parts, which may be one; of the values the first `value_width`
        columns count (None: all). A row of a group is seen from the group's last token on. `selected`: only these rows are seen. `window`:
        only rows of the last `window` tokens, itself included. Returns [tokens, heads, queries of a head, value_width]; 0 for a token that
        sees nothing.
        """

    def attend_with_lse(
        self,
        q: Tensor,
        keys: str,
        values: str,
        scale: float,
        *,
        value_width: int | None = None,
        selected: Selection | None = None,
        window: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`attend`, and the logarithm of each softmax's sum of exponentials [tokens, heads, queries of a head], in fp32; -1e30 where nothing is
        seen. `rorqual.ops.paged.merge` joins several."""

    def select(self, q: Tensor, weights: Tensor, part: str, budget: int) -> Selection:
        """The `budget` rows s of `part` with the highest sum_j w_{t,j} ReLU(q_{t,j} . k_s), of those that each token t sees: the lightning
        indexer of DeepSeek-V3.2-Exp. Of equal scores the earlier row is taken.

        q [tokens, heads, queries of a head, d], weights [tokens, heads, queries of a head]; j runs over both. No gradient passes the choice;
        the scores of the selection have theirs.
        """

    def gather(self, part: str, selected: Selection) -> Tensor:
        """The selected rows of `part` themselves, [tokens, k, heads, width], with gradients; 0 for row -1."""


@dataclass
class AttentionContext:
    """What the layers of one forward share: positions [batch, seq], mask [batch, 1, queries, keys], operations, angles.

    `table` [positions, dim / 2] of cosines and sines by (rope, dim), where the caller has them; else they are computed once a forward.
    The mask is None where a cache knows who sees whom. `wanted`: names of what the caller of forward wants recorded; `recorded`: what the
    layer at work has.
    """

    positions: Tensor
    mask: Tensor | None
    ops: Backend
    table: Callable[[Rope, int], tuple[Tensor, Tensor]] | None = None
    wanted: Collection[str] = ()
    recorded: dict[str, list[Tensor]] = field(default_factory=dict)
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

    def record(self, name: str, tensor: Tensor) -> None:
        """Hand a tensor to the caller of forward, who finds it in `Output.recorded`, one of each attention in turn; unless it is `wanted` this
        does nothing."""
        if name in self.wanted:
            self.recorded.setdefault(name, []).append(tensor)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention among the tokens themselves: q [batch, heads, queries, d], k and v [batch, heads, keys, d or d_v]."""
        assert self.mask is not None
        return self.ops.attend(q, k, v, self.mask, scale)


class Attention(Layer, ABC):
    """x [batch, seq, hidden] -> [batch, seq, hidden].

    `needs_cache`: it always attends by a `LayerCache`; in training `Decoder` gives it one, whatever the backend.
    """

    needs_cache = False

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
        """The parts that a layer keeps, each with a name of its own."""
        raise NotImplementedError

    def cache_width(self) -> float:
        """Values kept for a token in one layer."""
        return sum(part.values for part in self.cache_spec())

    def cache_bytes(self, value_bytes: float) -> float:
        """Bytes kept for a token in one layer; `value_bytes` for a value of a part without a type of its own."""
        return sum(p.values * (value_bytes if p.dtype is None else p.dtype.itemsize) for p in self.cache_spec())

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
