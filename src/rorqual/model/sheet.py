"""Whole rows of a training batch, attended in blocks as the engine attends them: the trainer's side of the same arithmetic."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from rorqual.core.errors import DataError
from rorqual.model.attention import LayerCache
from rorqual.ops.paged import BLOCK, QUERIES, attend, tiles_of
from rorqual.ops.rope import Rope, rope_table

TABLE = 4096
"""Positions whose angles are computed at once: a multiple of this, so that no angle depends on how many there are."""


def angles(rope: Rope, dim: int, positions: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """cos and sin [at least `positions`, dim / 2] of 0, 1, 2, ..."""
    parts = [
        rope_table(rope, dim, torch.arange(start, start + TABLE, device=device)) for start in range(0, positions, TABLE)
    ]
    cos, sin = zip(*parts)
    return torch.cat(cos), torch.cat(sin)


def read(pools: Mapping[str, Tensor], keys: str, values: str, value_width: int | None) -> tuple[Tensor, Tensor | int]:
    """Pools of keys and values as `rorqual.ops.paged.attend` takes them: values that begin the keys as their number of columns."""
    if keys == values:
        return pools[keys], value_width or pools[keys].shape[-1]
    return pools[keys], pools[values][..., :value_width]


class Sheet(LayerCache):
    """Implements `Cache` and its layers for a batch that is fed whole; nothing is kept, and gradients pass.

    positions [batch, seq] begin at 0 in each document; segments [batch, seq] are document numbers (None: a row is one).
    """

    def __init__(self, positions: Tensor, segments: Tensor | None) -> None:
        rows = positions.cpu().numpy()
        other = np.ones(rows.shape, bool)
        other[:, 1:] = rows[:, 1:] != rows[:, :-1] + 1
        if segments is not None:
            names = segments.cpu().numpy()
            other[:, 1:] |= names[:, 1:] != names[:, :-1]
        start = np.flatnonzero(other)
        flat = rows.reshape(-1)
        if flat[start].any():
            raise DataError(
                "a document that does not begin at position 0", where="positions", remedy="Feed documents whole."
            )
        count = np.diff(start, append=len(flat))
        blocks = -(-count // BLOCK)
        before = np.cumsum(blocks) - blocks
        block_table = before[:, None] + np.minimum(np.arange(int(blocks.max())), blocks[:, None] - 1)
        self._device = positions.device
        self._tiles = tiles_of(np.zeros(len(count), np.int64), count, block_table, QUERIES, self._device)
        place = np.full(int(blocks.sum()) * BLOCK, len(flat))  # one token more stands for what a block does not hold
        place[np.repeat(before * BLOCK, count) + flat] = np.arange(len(flat))
        self._place = torch.from_numpy(place).to(self._device)
        self._positions = int(flat.max()) + 1
        self._pools: dict[str, Tensor] = {}

    def layer(self, index: int) -> LayerCache:
        """Of every layer the same: what one has written serves until the next one writes."""
        return self

    def table(self, rope: Rope, dim: int) -> tuple[Tensor, Tensor]:
        """See `Cache`."""
        return angles(rope, dim, self._positions, self._device)

    def write(self, parts: Mapping[str, Tensor]) -> None:
        """See `LayerCache`."""
        self._pools = {name: self._blocks(part) for name, part in parts.items()}

    def attend(self, q: Tensor, keys: str, values: str, scale: float, *, value_width: int | None = None) -> Tensor:
        """See `LayerCache`."""
        return attend(q, *read(self._pools, keys, values, value_width), self._tiles, scale)

    def _blocks(self, part: Tensor) -> Tensor:
        """[tokens, heads, width] -> [blocks, heads, BLOCK, width]."""
        longer = torch.cat((part, part.new_zeros(1, *part.shape[1:])))
        return longer.index_select(0, self._place).unflatten(0, (-1, BLOCK)).transpose(1, 2).contiguous()
