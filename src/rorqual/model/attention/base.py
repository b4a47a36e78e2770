"""Base classes of the attention kinds. A kind's config builds the attention module and describes its cost and KV cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

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
    """A named tensor of the KV cache. Each row has `heads` vectors of `width` values, stored as `dtype` (None: the model's dtype).

    A write rounds rows to `dtype`, and a read converts the rows back to their original dtype. The trainer also rounds
    rows to `dtype`, so it computes with the values that the engine caches. Gradients pass the rounding unchanged.

    `every=1` stores one row per token. `every=n` stores one row per complete group of n tokens: positions i * n to
    i * n + n - 1 of a sequence. The block size `BLOCK` must be a multiple of `every`.
    """

    name: str
    heads: int
    width: int
    dtype: torch.dtype | None = None
    every: int = 1

    @property
    def values(self) -> float:
        """Number of cached values per token. The float is exact, because `every` is a power of two."""
        return self.heads * self.width / self.every


@dataclass(frozen=True)
class CacheLayout:
    """The cache parts that an attention kind declares in `cache_spec`, by name."""

    kind: str
    parts: Mapping[str, CachePart]
    writes: frozenset[frozenset[str]]
    """The sets of part names that `write` accepts.

    Each set contains all parts that share one value of `every` (tokens per row).
    """

    @classmethod
    def of(cls, config: AttentionConfig) -> CacheLayout:
        """Return the layout of an attention kind. Raises ValueError if part names repeat or a part's `every` does not divide `BLOCK`."""
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
        """Return the part called `name`. Raises ValueError if `cache_spec` does not declare this part."""
        if name not in self.parts:
            raise ValueError(
                f"attention kind '{self.kind}' uses the cached part '{name}'; its cache_spec declares {sorted(self.parts)}"
            )
        return self.parts[name]

    def check_write(self, given: Collection[str]) -> None:
        """Raise ValueError unless `given` contains exactly the parts that share one value of `every` (tokens per row)."""
        if frozenset(given) not in self.writes:
            raise ValueError(
                f"attention kind '{self.kind}' writes the parts {sorted(given)}; its cache_spec declares {sorted(self.parts)}, and one write "
                "must contain all parts with the same `every`"
            )


class LayerCache(Protocol):
    """The KV cache of one attention module during one forward pass.

    A forward pass writes its new rows before it reads, so reads include the new rows. Every method raises ValueError
    for a part that the kind's `cache_spec` does not declare.
    """

    def write(self, parts: Mapping[str, Tensor]) -> None:
        """Store the new rows of all parts that share one value of `every` (tokens per row). `parts` maps part names to tensors.

        A part with one row per token takes a tensor [tokens, heads, width]. A part with one row per group takes
        [groups, heads, width], for the groups that `groups` returned. A kind may write parts that it never reads.
        """

    def groups(self, part: str, every: int) -> tuple[Tensor, Tensor]:
        """Return the groups of `every` tokens that this forward pass completes.

        Rows of tokens from earlier forward passes are read from the cache.

        The first tensor [groups, every, heads, width] holds the rows of `part`, which must have one row per token. The
        second tensor [groups] holds the index of each group's last token among the tokens of this forward pass.

        The returned tensors may end with padding groups, so that a row's rounding does not depend on other rows
        (`ops.rows`). `write` ignores padding groups.
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
        """Compute causal attention from every token to the cached rows of its sequence.

        `q` is [tokens, heads, queries per head, d]. `keys` and `values` are part names and may be the same name.
        Attention uses only the first `value_width` columns of the values, or all columns if it is None. The row of a
        group is visible to the last token of the group and to later tokens.

        `selected` restricts attention to the selected rows. `window` restricts attention to the rows of the last
        `window` tokens, including the current token. Returns [tokens, heads, queries per head, value_width]. A token
        without visible rows gets 0.
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
        """Return the result of `attend` and the log-sum-exp of each softmax [tokens, heads, queries per head] in fp32.

        The log-sum-exp of a token without visible rows is -1e30. `rorqual.ops.paged.merge` combines results over
        disjoint sets of keys.
        """

    def select(self, q: Tensor, weights: Tensor, part: str, budget: int, scales: str | None = None) -> Selection:
        """Select for each token t the `budget` visible rows s of `part` with the highest sum_j w_{t,j} ReLU(q_{t,j} . k_s).

        This is the lightning indexer of DeepSeek-V3.2-Exp. Ties go to the earlier row. `q` is [tokens, heads, queries
        per head, d] and `weights` [tokens, heads, queries per head]. The index j runs over heads and queries per head.
        `scales` names a part of width 1 by which the rows of `part` are multiplied. The returned scores have gradients; the
        choice of rows has none.
        """

    def select_by_attention(self, q: Tensor, keys: str, scale: float, budget: int) -> Selection:
        """Select the `budget` rows with the largest attention weights, averaged over heads. A perfect indexer selects these rows.

        `q`, `keys` and `scale` are those of `attend`. The returned scores are the averaged weights, without gradients. Ties
        go to the earlier row.
        """

    def index_kl(
        self,
        q: Tensor,
        keys: str,
        scale: float,
        index_q: Tensor,
        weights: Tensor,
        index_keys: str,
        selected: Selection | None = None,
        scales: str | None = None,
    ) -> Tensor:
        """Return KL(attention weights || softmax of the index scores) of each token [tokens], in nats.

        This is the loss of the lightning indexer (DeepSeek-V3.2-Exp, eq. 3 and 4). `q`, `keys` and `scale` are those of
        `attend`. `index_q` and `index_keys` are the arguments `q` and `part` of `select`. `weights` and `scales` are those
        of `select`. Attention weights are averaged over heads and receive no gradient. `selected` restricts attention and
        index scores to the selected rows.
        """

    def gather(self, part: str, selected: Selection) -> Tensor:
        """Return the selected rows of `part` [tokens, k, heads, width], with gradients. Row -1 (no row) gives zeros."""


@dataclass
class AttentionContext:
    """State shared by all layers of one forward pass.

    `positions` is [batch, seq]. `mask` is [batch, 1, queries, keys], or None in a forward pass with a cache: the cache
    then decides which keys are visible. `ops` is the backend. `table(rope, dim)` returns precomputed cos and sin
    [positions, dim / 2]. Without `table`, the forward pass computes cos and sin. `wanted` contains the names of the tensors to
    record, and `recorded` the tensors recorded so far, by name.
    """

    positions: Tensor
    mask: Tensor | None
    ops: Backend
    table: Callable[[Rope, int], tuple[Tensor, Tensor]] | None = None
    wanted: Collection[str] = ()
    recorded: dict[str, list[Tensor]] = field(default_factory=dict)
    _angles: dict[tuple[Rope, int, bool], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def rope(self, rope: Rope, dim: int, *, interleaved: bool) -> tuple[Tensor, Tensor]:
        """Return the RoPE angles as cos and sin [batch, seq, 1, dim], in the form that `Backend.rope` reads."""
        key = (rope, dim, interleaved)
        if key not in self._angles:
            if self.table is None:
                cos, sin = rope_table(rope, dim, self.positions)
            else:
                cos, sin = (t[self.positions] for t in self.table(rope, dim))
            self._angles[key] = spread(cos.unsqueeze(2), sin.unsqueeze(2), interleaved=interleaved)
        return self._angles[key]

    def record(self, name: str, tensor: Tensor) -> None:
        """Append `tensor` to `Output.recorded[name]` if the caller of `forward` requested `name`."""
        if name in self.wanted:
            self.recorded.setdefault(name, []).append(tensor)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attend without a cache. `q` is [batch, heads, queries, d]; `k` and `v` are [batch, heads, keys, d or d_v]."""
        assert self.mask is not None
        return self.ops.attend(q, k, v, self.mask, scale)


class Attention(Layer, ABC):
    """An attention module: x [batch, seq, hidden] -> [batch, seq, hidden].

    A module that sets `needs_cache` always receives a `LayerCache`. In training, `Decoder` builds the `LayerCache`.
    """

    needs_cache = False

    @abstractmethod
    def forward(self, x: Tensor, context: AttentionContext, cache: LayerCache | None) -> Tensor: ...


class AttentionConfig(Kind):
    """Base class of the attention kinds' configs.

    The objectives `sparse` and `indexer_warmup`, and `tune.kind=indexer`, train kinds with `has_indexer`. The module of such a
    kind has a submodule `indexer`, and records `index_kl` and `dense_index_kl` (see `LayerCache.index_kl`). While
    `dense_index_kl` is recorded, attention is dense. A kind with an objective of its own needs no `has_indexer`.
    """

    has_indexer: ClassVar[bool] = False

    def build(self, hidden_size: int, eps: float) -> Attention:
        """Build the module."""
        raise NotImplementedError

    def cost(self, hidden_size: int, context: int) -> Cost:
        """Return the parameter count and the forward FLOPs per token in training, if each token attends to `context` keys."""
        raise NotImplementedError

    def decode_flops(self, hidden_size: int, context: float) -> float:
        """Return the FLOPs of attending to `context` cached keys when one token is decoded."""
        return self.cost(hidden_size, round(context)).flops - self.cost(hidden_size, 0).flops

    def saved_values(self, hidden_size: int, *, everything: bool) -> int:
        """Return the number of activations per token that training saves for the backward pass, excluding the residual stream.

        With selective recomputation, training saves the inputs and the output of attention. `everything` counts the
        values saved without recomputation, which include the normed input. Raises ConfigError if the kind does not
        count saved values.
        """
        raise ConfigError(
            f"attention kind '{self.kind}' does not report the values it saves for the backward pass",
            where="plan",
            remedy="Plan serving without training, or implement `saved_values` in its config.",
        )

    def split_by_tp(self) -> dict[str, int]:
        """Return the config fields that tensor parallelism divides, by name."""
        return {}

    def cache_spec(self) -> tuple[CachePart, ...]:
        """Return the parts of the KV cache of one attention module. Part names must be unique."""
        raise NotImplementedError

    def cache_width(self) -> float:
        """Return the number of values that one attention module caches per token."""
        return sum(part.values for part in self.cache_spec())

    def cache_bytes(self, value_bytes: float) -> float:
        """Return the bytes that one attention module caches per token.

        Values of parts without a dtype take `value_bytes` bytes.
        """
        return sum(p.values * (value_bytes if p.dtype is None else p.dtype.itemsize) for p in self.cache_spec())

    def check(self) -> None:
        """Raise ValueError if fields of the config contradict each other."""


class RMSNorm(nn.Module):
    """RMS normalization with a learned weight [dim]."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor, ops: Backend) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)
