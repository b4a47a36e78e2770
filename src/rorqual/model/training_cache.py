"""The KV cache of a training batch: paged attention over whole documents, without an engine.

For each query, the trainer and the engine sum over blocks of keys in the same order, so that the trainer's rounding equals the
engine's rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rorqual.core.errors import DataError
from rorqual.model.attention import CacheLayout, CachePart, LayerCache
from rorqual.ops.backends.attention import AttentionMetadata, PagedAttention
from rorqual.ops.paged import BLOCK, Ints, round_up_group_count
from rorqual.ops.rope import Rope, rope_angle_table

PADDING = -1
"""Document number of padding tokens."""


class PackedBatchCache:
    """A `Cache` for a training batch. A `PackedBatchCache` is used for one forward pass and is differentiable.

    `positions` [batch, seq] must begin at 0 in each document. `segments` [batch, seq] are document numbers, or -1 for padding.
    If `segments` is None, each row is one document. `layouts` has the cache layout of each attention module. `attention` is the
    backend's paged attention.
    """

    def __init__(
        self, positions: Tensor, segments: Tensor | None, layouts: Sequence[CacheLayout], attention: PagedAttention
    ) -> None:
        rows = positions.cpu().numpy()
        documents = np.zeros_like(rows) if segments is None else segments.cpu().numpy()
        rows = _renumber_padding(rows, documents == PADDING)
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

    def rope_cos_sin(self, rope: Rope, dim: int) -> tuple[Tensor, Tensor]:
        """See `Cache`."""
        return rope_angle_table(rope, dim, int(self._positions.max()) + 1, self.device)

    def row_indices(self, every: int) -> tuple[Tensor, Tensor]:
        """Return two index tensors: the last token of each group of `every` tokens, and the group of each row of the blocks.

        The first tensor [groups] holds the last token of each group, with padding at the end
        (`ops.paged.round_up_group_count`). The second tensor [blocks * BLOCK / every] holds the group index of each row of the
        blocks. The group index of an empty row is the length of the first tensor.
        """
        if every not in self._rows_by_every:
            ends = np.flatnonzero(self._positions % every == every - 1)
            last = np.zeros(
                len(ends) if every == 1 else round_up_group_count(len(ends), self.plan.rows.least), np.int64
            )
            last[: len(ends)] = ends
            group = np.full(len(self._positions) + 1, len(last))
            group[ends] = np.arange(len(ends))
            places = group[self._token_of_slot[every - 1 :: every]]
            self._rows_by_every[every] = (
                torch.from_numpy(last).to(self.device),
                torch.from_numpy(places).to(self.device),
            )
        return self._rows_by_every[every]


def _renumber_padding(positions: Ints, padding: npt.NDArray[np.bool_]) -> Ints:
    """Set the positions of padding tokens [batch, seq] to 0, 1, ..., BLOCK - 1, repeatedly, so that BLOCK padding tokens share a block.

    In a batch, all padding tokens have position 0. Without renumbering, each padding token would therefore be a separate
    document and use a whole block.
    """
    column = np.arange(positions.shape[1])
    begins = padding.copy()
    begins[:, 1:] &= ~padding[:, :-1]
    first = np.maximum.accumulate(np.where(begins, column, 0), axis=1)
    return np.where(padding, (column - first) % BLOCK, positions)


class _RoundToDtype(torch.autograd.Function):
    """Round values to another dtype, and convert them back to their original dtype. The backward pass does not round
    gradients."""

    @staticmethod
    def forward(context: Any, values: Tensor, dtype: torch.dtype) -> Tensor:
        return values.to(dtype).to(values.dtype)

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _PackedLayerCache(LayerCache):
    def __init__(self, packed: PackedBatchCache, layout: CacheLayout) -> None:
        super().__init__(layout, packed.attention, packed.plan)
        self._packed = packed
        self._rows: dict[str, Tensor] = {}
        self._blocks: dict[str, Tensor] = {}

    def _store(self, part: CachePart, rows: Tensor) -> None:
        self._rows[part.name] = rows if part.dtype is None else _RoundToDtype.apply(rows, part.dtype)
        self._blocks.pop(part.name, None)  # activation checkpointing writes the rows a second time

    def _read_completed_groups(self, name: str, every: int) -> tuple[Tensor, Tensor]:
        last, _ = self._packed.row_indices(every)
        tokens = (last.unsqueeze(1) + torch.arange(1 - every, 1, device=last.device)).clamp(min=0)
        return self._rows[name].index_select(0, tokens.flatten()).unflatten(0, tokens.shape), last

    def _pool(self, name: str) -> Tensor:
        """Convert the rows [rows, heads, width] of a cache part to a block pool with BLOCK / every rows per block."""
        if name not in self._blocks:
            rows, every = self._rows[name], self._layout.parts[name].every
            padded = torch.cat((rows, rows.new_zeros(1, *rows.shape[1:])))
            blocks = padded.index_select(0, self._packed.row_indices(every)[1]).unflatten(0, (-1, BLOCK // every))
            self._blocks[name] = self._attention.prepack_blocks(blocks.transpose(1, 2).contiguous())
        return self._blocks[name]
