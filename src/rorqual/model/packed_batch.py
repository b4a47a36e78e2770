"""Paged attention over a training batch.

For each query, the trainer and the engine sum over blocks of keys in the same order, so that both round the same way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rorqual.core.errors import DataError
from rorqual.model.attention import CacheLayout, CachePart, LayerCache, Selection
from rorqual.ops.backends.attention import AttentionMetadata, PagedAttention, Plan
from rorqual.ops.paged import BLOCK, Ints, fill
from rorqual.ops.rope import Rope, rope_table

ANGLE_CHUNK = 4096
"""Number of positions per `rope_table` call. The number is fixed so that the angles do not depend on the table length."""

PADDING = -1
"""Document number of padding tokens."""


def angles(rope: Rope, dim: int, positions: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the RoPE angles of positions 0, 1, 2, ...

    Each is [n, dim / 2], with n at least `positions`.
    """
    parts = [
        rope_table(rope, dim, torch.arange(start, start + ANGLE_CHUNK, device=device))
        for start in range(0, positions, ANGLE_CHUNK)
    ]
    cos, sin = zip(*parts)
    return torch.cat(cos), torch.cat(sin)


class BlockedLayerCache(LayerCache, ABC):
    """A `LayerCache` whose parts are stored in blocks.

    `_store` rounds new rows of a part to its dtype and stores them. `_pool` returns a part as a block pool in the layout of the backend's
    `attention`, and `_groups` returns the rows of completed groups.
    """

    def __init__(self, layout: CacheLayout, attention: PagedAttention, plan: Plan) -> None:
        self._layout, self._attention, self._plan = layout, attention, plan
        self._written = dict[str, torch.dtype]()  # dtype of the rows passed to `write`, by part name

    @abstractmethod
    def _store(self, part: CachePart, rows: Tensor) -> None: ...

    @abstractmethod
    def _pool(self, name: str) -> Tensor: ...

    @abstractmethod
    def _groups(self, name: str, every: int) -> tuple[Tensor, Tensor]: ...

    def write(self, parts: Mapping[str, Tensor]) -> None:
        """See `LayerCache`."""
        self._layout.check_write(parts)
        for name, rows in parts.items():
            self._store(self._layout.parts[name], rows)
            self._written[name] = rows.dtype

    def groups(self, part: str, every: int) -> tuple[Tensor, Tensor]:
        """See `LayerCache`."""
        if self._written_part(part).every > 1 or every < 1 or BLOCK % every:
            raise ValueError(
                f"attention kind '{self._layout.kind}' requests groups of {every} rows of the cached part '{part}': the part must have one row "
                f"per token, and the group size must divide {BLOCK}"
            )
        rows, last = self._groups(part, every)
        return rows.to(self._written[part]), last

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
        """See `LayerCache`."""
        if selected is None and window is None and self._written_part(keys).every == 1:
            pools, width = self._pools(keys, values, value_width)
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
        selected: Selection | None = None,
        window: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `LayerCache`."""
        if window is not None and window < 1:
            raise ValueError(f"attention kind '{self._layout.kind}' requests window={window}; it must be at least 1")
        pools, width = self._pools(keys, values, value_width)
        rows = None if selected is None else selected.rows
        return self._attention.attend_with_lse(q, *pools, self._plan, scale, width, selected=rows, window=window)

    def select(self, q: Tensor, weights: Tensor, part: str, budget: int, scales: str | None = None) -> Selection:
        """See `LayerCache`."""
        if self._written_part(part) and budget < 1:
            raise ValueError(
                f"attention kind '{self._layout.kind}' requests budget={budget} for the cached part '{part}'; it must be at least 1"
            )
        return self._attention.select(q, weights, self._pool(part), self._plan, budget, self._scales(scales))

    def select_by_attention(self, q: Tensor, keys: str, scale: float, budget: int) -> Selection:
        """See `LayerCache`."""
        self._written_part(keys)
        return self._attention.select_by_attention(q, self._pool(keys), self._plan, scale, budget)

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
        """See `LayerCache`."""
        if self._written_part(keys).every != self._written_part(index_keys).every:
            raise ValueError(
                f"attention kind '{self._layout.kind}' compares the parts '{keys}' and '{index_keys}', which must have the same `every`"
            )
        rows = None if selected is None else selected.rows
        pools = self._pool(keys), self._pool(index_keys)
        return self._attention.index_kl(
            q, pools[0], scale, index_q, weights, pools[1], self._plan, rows, self._scales(scales)
        )

    def gather(self, part: str, selected: Selection) -> Tensor:
        """See `LayerCache`."""
        self._written_part(part)
        return self._attention.gather(self._pool(part), self._plan, selected.rows).to(self._written[part])

    def _scales(self, name: str | None) -> Tensor | None:
        return self._pool(name) if name is not None and self._written_part(name) else None

    def _written_part(self, name: str) -> CachePart:
        if name not in self._written:
            kind, name = self._layout.kind, self._layout.part(name).name
            raise ValueError(f"attention kind '{kind}' reads the cached part '{name}' before writing it")
        return self._layout.parts[name]

    def _pools(self, keys: str, values: str, value_width: int | None) -> tuple[tuple[Tensor, Tensor], int]:
        """Return the pools of keys and values, and the number of value columns to use."""
        if self._written_part(keys).every != self._written_part(values).every:
            raise ValueError(
                f"attention kind '{self._layout.kind}' attends with keys '{keys}' and values '{values}', which must have the same `every`"
            )
        return (self._pool(keys), self._pool(values)), value_width or self._layout.parts[values].width


class PackedBatchCache:
    """A `Cache` for a training batch. The cache is used for one forward pass and is differentiable.

    `positions` [batch, seq] must begin at 0 in each document. `segments` [batch, seq] are document numbers, or -1 for padding;
    None means one document per row. `layouts` has the cache layout of each attention module. `attention` is the backend's paged
    attention.
    """

    def __init__(
        self, positions: Tensor, segments: Tensor | None, layouts: Sequence[CacheLayout], attention: PagedAttention
    ) -> None:
        rows = positions.cpu().numpy()
        documents = np.zeros_like(rows) if segments is None else segments.cpu().numpy()
        rows = _with_padding(rows, documents == PADDING)
        starts = np.ones(rows.shape, bool)  # the first token of each document
        starts[:, 1:] = (rows[:, 1:] != rows[:, :-1] + 1) | (documents[:, 1:] != documents[:, :-1])
        start = np.flatnonzero(starts)
        flat = rows.reshape(-1)
        if flat[start].any():
            raise DataError(
                "a document does not begin at position 0", where="positions", remedy="Pass complete documents."
            )
        count = np.diff(start, append=len(flat))
        blocks = -(-count // BLOCK)
        first_block = np.cumsum(blocks) - blocks
        block_table = first_block[:, None] + np.minimum(np.arange(int(blocks.max())), blocks[:, None] - 1)
        self.device, self.layouts, self.attention = positions.device, layouts, attention
        slots = np.repeat(first_block * BLOCK, count) + flat
        query_start_loc = np.append(start, len(flat))
        self.plan = attention.plan(AttentionMetadata(query_start_loc, count, block_table, slots), self.device)
        token_of_slot = np.full(int(blocks.sum()) * BLOCK, len(flat))  # len(flat): empty slot
        token_of_slot[slots] = np.arange(len(flat))
        self._token_of_slot, self._positions = token_of_slot, flat
        self._rows_by_every: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int) -> LayerCache:
        """See `Cache`."""
        return _PackedLayerCache(self, self.layouts[index])

    def table(self, rope: Rope, dim: int) -> tuple[Tensor, Tensor]:
        """See `Cache`."""
        return angles(rope, dim, int(self._positions.max()) + 1, self.device)

    def rows(self, every: int) -> tuple[Tensor, Tensor]:
        """Return two index tensors: the last token of each group of `every` tokens, and the group of each row of the blocks.

        The first tensor [groups] holds the last token of each group, with padding at the end (`ops.paged.fill`). The
        second tensor [blocks * BLOCK / every] holds the group index of each row. The index of an empty row is the length
        of the first tensor.
        """
        if every not in self._rows_by_every:
            ends = np.flatnonzero(self._positions % every == every - 1)
            last = np.zeros(len(ends) if every == 1 else fill(len(ends), self.plan.rows.least), np.int64)
            last[: len(ends)] = ends
            group = np.full(len(self._positions) + 1, len(last))
            group[ends] = np.arange(len(ends))
            places = group[self._token_of_slot[every - 1 :: every]]
            self._rows_by_every[every] = (
                torch.from_numpy(last).to(self.device),
                torch.from_numpy(places).to(self.device),
            )
        return self._rows_by_every[every]


def _with_padding(positions: Ints, padding: npt.NDArray[np.bool_]) -> Ints:
    """Number padding tokens [batch, seq] from 0 to BLOCK - 1, again and again, so that each document of padding fills a block.

    A batch gives them position 0, which would make each of them a document with a block of its own.
    """
    column = np.arange(positions.shape[1])
    begins = padding.copy()
    begins[:, 1:] &= ~padding[:, :-1]
    first = np.maximum.accumulate(np.where(begins, column, 0), axis=1)
    return np.where(padding, (column - first) % BLOCK, positions)


class _Rounded(torch.autograd.Function):
    """Round values to another dtype, and convert them back to their original dtype. The backward pass does not round."""

    @staticmethod
    def forward(context: Any, values: Tensor, dtype: torch.dtype) -> Tensor:
        return values.to(dtype).to(values.dtype)

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _PackedLayerCache(BlockedLayerCache):
    def __init__(self, packed: PackedBatchCache, layout: CacheLayout) -> None:
        super().__init__(layout, packed.attention, packed.plan)
        self._packed = packed
        self._rows: dict[str, Tensor] = {}
        self._blocks: dict[str, Tensor] = {}

    def _store(self, part: CachePart, rows: Tensor) -> None:
        self._rows[part.name] = rows if part.dtype is None else _Rounded.apply(rows, part.dtype)

    def _groups(self, name: str, every: int) -> tuple[Tensor, Tensor]:
        last, _ = self._packed.rows(every)
        tokens = (last.unsqueeze(1) + torch.arange(1 - every, 1, device=last.device)).clamp(min=0)
        return self._rows[name].index_select(0, tokens.flatten()).unflatten(0, tokens.shape), last

    def _pool(self, name: str) -> Tensor:
        """Convert a part's rows [rows, heads, width] to a block pool with BLOCK / every rows per block."""
        if name not in self._blocks:
            rows, every = self._rows[name], self._layout.parts[name].every
            padded = torch.cat((rows, rows.new_zeros(1, *rows.shape[1:])))
            blocks = padded.index_select(0, self._packed.rows(every)[1]).unflatten(0, (-1, BLOCK // every))
            self._blocks[name] = self._attention.prepack_blocks(blocks.transpose(1, 2).contiguous())
        return self._blocks[name]
