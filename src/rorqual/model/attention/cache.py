"""The interface between an attention kind and the KV cache: the cache parts that the kind declares, and the operations that
read and write the cache parts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rorqual.ops.backends.attention import AttentionPlan, PagedAttention
from rorqual.ops.paged import BLOCK, SelectedRows


@dataclass(frozen=True)
class CachePart:
    """A named tensor of the KV cache. Each row has `heads` vectors of `width` values, stored as `dtype` (if `dtype` is None, as
    the model's dtype).

    A write to the cache rounds rows to `dtype`, and a read converts the rows back to their original dtype. The trainer also
    rounds rows to `dtype`, so the trainer computes with the values that the engine caches. The backward pass treats the
    rounding to `dtype` as the identity.

    With `every=1`, the cache stores one row per token. With `every=n`, the cache stores one row per complete group of n tokens:
    positions i * n to i * n + n - 1 of a sequence. The block size `BLOCK` must be a multiple of `every`.
    """

    name: str
    heads: int
    width: int
    dtype: torch.dtype | None = None
    every: int = 1

    @property
    def values_per_token(self) -> float:
        """Number of cached values of the cache part per token. The number of values per token is exact as a float, because
        `every` is a power of two."""
        return self.heads * self.width / self.every


@dataclass(frozen=True)
class CacheLayout:
    """The cache parts that an attention kind declares in `cache_spec`, by name."""

    kind: str
    parts: Mapping[str, CachePart]
    writes: frozenset[frozenset[str]]
    """The sets of cache part names that `write` accepts.

    Each set contains the names of all cache parts that share one value of `every` (tokens per row).
    """

    @classmethod
    def of(cls, kind: str, spec: tuple[CachePart, ...]) -> CacheLayout:
        """Return the layout of the attention kind `kind`. Raises ValueError if two parts have the same name, or if a part's
        `every` does not divide `BLOCK`."""
        parts = {part.name: part for part in spec}
        if len(parts) < len(spec):
            raise ValueError(f"attention kind '{kind}' declares two cache parts with the same name")
        for part in spec:
            if part.every < 1 or BLOCK % part.every:
                raise ValueError(
                    f"attention kind '{kind}' declares cache part '{part.name}' with every={part.every}, which does not divide "
                    f"the block size {BLOCK}"
                )
        writes = (frozenset(part.name for part in spec if part.every == every) for every in {p.every for p in spec})
        return cls(kind, parts, frozenset(writes))

    def part(self, name: str) -> CachePart:
        """Return the cache part called `name`. Raises ValueError if `cache_spec` does not declare a part `name`."""
        if name not in self.parts:
            raise ValueError(
                f"attention kind '{self.kind}' uses the cached part '{name}'; its cache_spec declares {sorted(self.parts)}"
            )
        return self.parts[name]

    def check_write(self, given: Collection[str]) -> None:
        """Raise ValueError unless `given` contains exactly the names of the cache parts that share one value of `every` (tokens
        per row)."""
        if frozenset(given) not in self.writes:
            raise ValueError(
                f"attention kind '{self.kind}' writes the parts {sorted(given)}; its cache_spec declares {sorted(self.parts)}, and one write "
                "must contain all parts with the same `every`"
            )


class LayerCache:
    """The KV cache of one attention module during one forward pass. The parts of the KV cache are stored in blocks.

    A forward pass writes the new rows before the forward pass reads the cache, so reads include the new rows. Every method
    raises ValueError for a part that the `cache_spec` of the attention kind does not declare.

    In a subclass, `_store` rounds new rows of a part to the part's dtype and stores the rounded rows. `_pool` returns a part as
    a block pool in the layout of the backend's `attention`, and `_read_completed_groups` returns the rows of completed groups.
    """

    def __init__(self, layout: CacheLayout, attention: PagedAttention, plan: AttentionPlan) -> None:
        self._layout, self._attention, self._plan = layout, attention, plan
        self._written = dict[str, torch.dtype]()  # dtype of the rows passed to `write`, by part name

    def _store(self, part: CachePart, rows: Tensor) -> None:
        raise NotImplementedError

    def _pool(self, name: str) -> Tensor:
        raise NotImplementedError

    def _read_completed_groups(self, name: str, every: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def write(self, parts: Mapping[str, Tensor]) -> None:
        """Store the new rows of all cache parts that share one value of `every` (tokens per row). `parts` maps part names to
        the tensors of new rows.

        A part with one row per token takes a tensor [tokens, heads, width]. A part with one row per group takes a tensor
        [groups, heads, width], for the groups that `groups` returned. An attention kind may write cache parts that the
        attention kind never reads.
        """
        self._layout.check_write(parts)
        for name, rows in parts.items():
            self._store(self._layout.parts[name], rows)
            self._written[name] = rows.dtype

    def groups(self, part: str, every: int) -> tuple[Tensor, Tensor]:
        """Return the groups of `every` tokens that the forward pass completes.

        The rows of tokens from earlier forward passes are read from the cache.

        The first tensor [groups, every, heads, width] holds the rows of `part`, which must have one row per token. The second
        tensor [groups] holds the index of each group's last token among the tokens of the forward pass.

        The returned tensors may end with padding groups, so that the rounding of one row does not depend on other rows
        (`ops.row_limits`). `write` ignores padding groups.
        """
        if self._require_written_part(part).every > 1 or every < 1 or BLOCK % every:
            raise ValueError(
                f"attention kind '{self._layout.kind}' requests groups of {every} rows of the cached part '{part}': the part must have one row "
                f"per token, and the group size must divide {BLOCK}"
            )
        rows, last = self._read_completed_groups(part, every)
        return rows.to(self._written[part]), last

    def attend(
        self,
        q: Tensor,
        keys: str,
        values: str,
        scale: float,
        *,
        value_width: int | None = None,
        selected: SelectedRows | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Compute causal attention from every token to the cached rows of its sequence.

        `q` is [tokens, heads, queries per head, d]. `keys` and `values` are names of cache parts and may be the same name.
        Attention uses only the first `value_width` columns of the values, or all columns of the values if `value_width` is
        None. The cached row of a group is visible to the last token of the group and to later tokens.

        `selected` restricts attention to the rows in `selected`. `window` restricts attention to the rows of the last `window`
        tokens, including the current token. Returns the attention output [tokens, heads, queries per head, value_width]. The
        attention output of a token without visible rows is 0.
        """
        if selected is None and window is None and self._require_written_part(keys).every == 1:
            pools, width = self._key_value_pools(keys, values, value_width)
            return self._attention.attend(q, *pools, self._plan, scale, width)
        return self.attend_with_lse(q, keys, values, scale, value_width=value_width, selected=selected, window=window)[
            0
        ]

    def attend_with_lse(
        self,
        q: Tensor,
        keys: str,
        values: str,
        scale: float,
        *,
        value_width: int | None = None,
        selected: SelectedRows | None = None,
        window: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the result of `attend` and the log-sum-exp of each softmax [tokens, heads, queries per head] in fp32.

        The log-sum-exp of a token without visible rows is -1e30. `rorqual.ops.paged.merge_attention` combines attention outputs
        over disjoint sets of keys.
        """
        pools, width = self._key_value_pools(keys, values, value_width)
        rows = None if selected is None else selected.rows
        return self._attention.attend_with_lse(q, *pools, self._plan, scale, width, selected=rows, window=window)

    def select(self, q: Tensor, weights: Tensor, part: str, budget: int, scales: str | None = None) -> SelectedRows:
        """Select for each token t the `budget` visible rows s of `part` with the highest sum_j w_{t,j} ReLU(q_{t,j} . k_s).

        The sum over j is the index score of DeepSeek-V3.2-Exp's lightning indexer. Between rows with equal index scores, the
        earlier row is selected. `q` is [tokens, heads, queries per head, d] and `weights` [tokens, heads, queries per head].
        The index j runs over heads and queries per head. `scales` names a cache part of width 1 by which the rows of `part` are
        multiplied. The returned index scores have gradients, but the selection of rows has no gradient.
        """
        self._require_written_part(part)
        return self._attention.select(q, weights, self._pool(part), self._plan, budget, self._scales_pool(scales))

    def select_by_attention(self, q: Tensor, keys: str, scale: float, budget: int) -> SelectedRows:
        """Select the `budget` rows with the largest attention weights, averaged over heads. A perfect lightning indexer would
        select the rows that `select_by_attention` returns.

        `q`, `keys` and `scale` are as in `attend`. The returned scores are the averaged attention weights, without gradients.
        Between rows with equal attention weights, the earlier row is selected.
        """
        self._require_written_part(keys)
        return self._attention.select_by_attention(q, self._pool(keys), self._plan, scale, budget)

    def index_kl(
        self,
        q: Tensor,
        keys: str,
        scale: float,
        index_q: Tensor,
        weights: Tensor,
        index_keys: str,
        selected: SelectedRows | None = None,
        scales: str | None = None,
    ) -> Tensor:
        """Return KL(attention weights || softmax of the index scores) of each token [tokens], in nats.

        The KL divergence is the loss of the lightning indexer (DeepSeek-V3.2-Exp, eq. 3 and 4). `q`, `keys` and `scale` are as
        in `attend`. `index_q` and `index_keys` are the arguments `q` and `part` of `select`. `weights` and `scales` are as in
        `select`. Attention weights are averaged over heads and receive no gradient. `selected` restricts attention and index
        scores to the selected rows.
        """
        self._require_written_part(keys), self._require_written_part(index_keys)
        rows = None if selected is None else selected.rows
        pools = self._pool(keys), self._pool(index_keys)
        return self._attention.index_kl(
            q, pools[0], scale, index_q, weights, pools[1], self._plan, rows, self._scales_pool(scales)
        )

    def gather(self, part: str, selected: SelectedRows) -> Tensor:
        """Return the selected rows of `part` [tokens, k, heads, width], with gradients. For the row number -1 (no row),
        `gather` returns zeros."""
        self._require_written_part(part)
        return self._attention.gather(self._pool(part), self._plan, selected.rows).to(self._written[part])

    def _scales_pool(self, name: str | None) -> Tensor | None:
        return self._pool(name) if name is not None and self._require_written_part(name) else None

    def _require_written_part(self, name: str) -> CachePart:
        if name not in self._written:
            kind, name = self._layout.kind, self._layout.part(name).name
            raise ValueError(f"attention kind '{kind}' reads the cached part '{name}' before writing it")
        return self._layout.parts[name]

    def _key_value_pools(self, keys: str, values: str, value_width: int | None) -> tuple[tuple[Tensor, Tensor], int]:
        """Return the block pools of the keys and of the values, and the number of value columns to use."""
        if self._require_written_part(keys).every != self._require_written_part(values).every:
            raise ValueError(
                f"attention kind '{self._layout.kind}' attends with keys '{keys}' and values '{values}', which must have the same `every`"
            )
        return (self._pool(keys), self._pool(values)), value_width or self._layout.parts[values].width
