"""Base classes of the attention kinds. A kind's config builds the module, counts its cost and describes its cache."""

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
    """A tensor cached under `name`: `heads` vectors of `width` values, of type `dtype` (None: the model's type).

    Rows are rounded to `dtype` when they are written, and read in the type that they had. The trainer does the same.

    With `every` 1, each token has a row. With `every` n, each complete group of n tokens has one, at positions i n to i
    n + n - 1 of a sequence. n divides `BLOCK`.
    """

    name: str
    heads: int
    width: int
    dtype: torch.dtype | None = None
    every: int = 1

    @property
    def values(self) -> float:
        """Values per token. The number is exact, because `every` is a power of two."""
        return self.heads * self.width / self.every


@dataclass(frozen=True)
class CacheLayout:
    """The parts of an attention kind's `cache_spec`, by name."""

    kind: str
    parts: Mapping[str, CachePart]
    writes: frozenset[frozenset[str]]
    """The sets of parts that one write may contain. Each set holds all parts with the same `every`."""

    @classmethod
    def of(cls, config: AttentionConfig) -> CacheLayout:
        """Return the layout of a kind. Raises ValueError if two parts share a name or an `every` does not divide `BLOCK`."""
        spec = config.cache_spec()
        parts = {part.name: part for part in spec}
        if len(parts) < len(spec):
            raise ValueError(f"attention kind '{config.kind}' declares two cache parts with the same name")
        for part in spec:
            if part.every < 1 or BLOCK % part.every:
                raise ValueError(
                    f"attention kind '{config.kind}' declares cache part '{part.name}' with every={part.every}, which does not divide "
                    f"the block size {BLOCK}"
                )
        writes = (frozenset(part.name for part in spec if part.every == every) for every in {p.every for p in spec})
        return cls(config.kind, parts, frozenset(writes))

    def part(self, name: str) -> CachePart:
        """Return the part called `name`. Raises ValueError if there is none."""
        if name not in self.parts:
            raise ValueError(
                f"attention kind '{self.kind}' uses the cached part '{name}'; its cache_spec declares {sorted(self.parts)}"
            )
        return self.parts[name]

    def check_write(self, given: Collection[str]) -> None:
        """Raise ValueError unless `given` names exactly the parts that share one `every`."""
        if frozenset(given) not in self.writes:
            raise ValueError(
                f"attention kind '{self.kind}' writes the parts {sorted(given)}; its cache_spec declares {sorted(self.parts)}, and one write "
                "must contain all parts with the same `every`"
            )


class LayerCache(Protocol):
    """The cached parts of one attention, for the tokens of one forward pass.

    A forward pass writes before it reads, so its reads include its own tokens. Raises ValueError for names that are not
    in the kind's `cache_spec`.
    """

    def write(self, parts: Mapping[str, Tensor]) -> None:
        """Store all parts with the same `every`, by name.

        A tensor is [tokens, heads, width] for a part with one row per token. Otherwise it is [groups, heads, width],
        for the groups that `groups` returned. A part that is never read may be written too.
        """

    def groups(self, part: str, every: int) -> tuple[Tensor, Tensor]:
        """Return the groups of `every` tokens that this forward pass completes. Earlier tokens come from the cache.

        The first tensor [groups, every, heads, width] holds the rows of `part`, which must have one row per token. The
        second [groups] holds the index of each group's last token among this forward's tokens.

        The groups are padded to a size that matrix products need. `write` ignores the values of padding groups.
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
        """Attend from every token to the written rows of its sequence, up to and including itself.

        q is [tokens, heads, queries per head, d]. `keys` and `values` name parts and may name the same one.
        `value_width` limits the values to their first columns; None uses all. The row of a group is visible from the
        group's last token on.

        `selected` restricts attention to these rows. `window` restricts it to rows of the last `window` tokens,
        including the current one. Returns [tokens, heads, queries per head, value_width], with 0 for a token that sees
        nothing.
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
        """Return `attend`'s result and the log-sum-exp of each softmax [tokens, heads, queries per head] in fp32.

        The log-sum-exp is -1e30 for a token that sees nothing. `rorqual.ops.paged.merge` joins several results.
        """

    def select(self, q: Tensor, weights: Tensor, part: str, budget: int) -> Selection:
        """Select the `budget` rows s of `part` with the highest sum_j w_{t,j} ReLU(q_{t,j} . k_s), among those each token t sees.

        This is the lightning indexer of DeepSeek-V3.2-Exp. Equal scores take the earlier row. q is [tokens, heads,
        queries per head, d] and weights [tokens, heads, queries per head]; j runs over both axes. The choice has no
        gradient; the scores of the selected rows do.
        """

    def gather(self, part: str, selected: Selection) -> Tensor:
        """Return the selected rows of `part` [tokens, k, heads, width], with gradients, and 0 for row -1."""


@dataclass
class AttentionContext:
    """State that the layers of one forward pass share: positions [batch, seq], mask [batch, 1, queries, keys], backend, angles.

    `table` returns cos and sin [positions, dim / 2] by (rope, dim). If it is None, angles are computed once per forward
    pass. The mask is None if a cache defines visibility. `wanted` holds the names to record, and `recorded` the tensors
    recorded so far.
    """

    positions: Tensor
    mask: Tensor | None
    ops: Backend
    table: Callable[[Rope, int], tuple[Tensor, Tensor]] | None = None
    wanted: Collection[str] = ()
    recorded: dict[str, list[Tensor]] = field(default_factory=dict)
    _angles: dict[tuple[Rope, int, bool], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def rope(self, rope: Rope, dim: int, *, interleaved: bool) -> tuple[Tensor, Tensor]:
        """Return cos and sin [batch, seq, 1, dim] for `rotate`."""
        known = (rope, dim, interleaved)
        if known not in self._angles:
            if self.table is None:
                cos, sin = rope_table(rope, dim, self.positions)
            else:
                cos, sin = (t[self.positions] for t in self.table(rope, dim))
            self._angles[known] = spread(cos.unsqueeze(2), sin.unsqueeze(2), interleaved=interleaved)
        return self._angles[known]

    def record(self, name: str, tensor: Tensor) -> None:
        """Record a tensor in `Output.recorded`, which keeps one per attention, in order. Do nothing unless `name` is in `wanted`."""
        if name in self.wanted:
            self.recorded.setdefault(name, []).append(tensor)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attend among this forward's tokens. q is [batch, heads, queries, d]; k and v are [batch, heads, keys, d or d_v]."""
        assert self.mask is not None
        return self.ops.attend(q, k, v, self.mask, scale)


class Attention(Layer, ABC):
    """An attention module: x [batch, seq, hidden] -> [batch, seq, hidden].

    A module with `needs_cache` always attends through a `LayerCache`. In training `Decoder` provides one, for any
    backend.
    """

    needs_cache = False

    @abstractmethod
    def forward(self, x: Tensor, context: AttentionContext, cache: LayerCache | None) -> Tensor: ...


class AttentionConfig(Kind):
    """Base class of the attention kinds' configs."""

    def build(self, hidden_size: int, eps: float) -> Attention:
        """Build the module."""
        raise NotImplementedError

    def cost(self, hidden_size: int, context: int) -> Cost:
        """Return the parameters, and the FLOPs per token of the training form, with `context` keys attended."""
        raise NotImplementedError

    def decode_flops(self, hidden_size: int, context: float) -> float:
        """Return the FLOPs that attending to `context` cached keys adds to a decoded token, in the form used for generation."""
        return self.cost(hidden_size, round(context)).flops - self.cost(hidden_size, 0).flops

    def saved_values(self, hidden_size: int, *, everything: bool) -> int:
        """Return the values per token that training saves for the backward pass, without the residual stream.

        These are the inputs and the output of attention. With `everything` they include the normed input and all else
        that is not recomputed. Raises ConfigError if the kind does not count them.
        """
        raise ConfigError(
            f"attention kind '{self.kind}' does not report the values it saves for the backward pass",
            where="plan",
            remedy="Plan serving only, or implement `saved_values` in its config.",
        )

    def split_by_tp(self) -> dict[str, int]:
        """Return the dimensions that tensor parallelism divides, by their names in the config."""
        return {}

    def cache_spec(self) -> tuple[CachePart, ...]:
        """Return the parts that one attention caches. Names must be unique."""
        raise NotImplementedError

    def cache_width(self) -> float:
        """Return the values cached per token in one attention."""
        return sum(part.values for part in self.cache_spec())

    def cache_bytes(self, value_bytes: float) -> float:
        """Return the bytes cached per token in one attention, `value_bytes` for each value of a part without a type of its own."""
        return sum(p.values * (value_bytes if p.dtype is None else p.dtype.itemsize) for p in self.cache_spec())

    def check(self) -> None:
        """Raise ValueError if the dimensions contradict each other."""


class RMSNorm(nn.Module):
    """RMS normalisation with a learned weight [dim]."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor, ops: Backend) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)
