"""Whole rows of a training batch, attended in blocks as the engine attends them: the trainer's side of the same arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.core.errors import DataError
from rorqual.model.attention import CacheLayout, CachePart, LayerCache, Selection
from rorqual.ops.paged import BLOCK, QUERIES, Tiles, attend, attend_within, gather, restricted, select, tiles_of
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


def fill(groups: int, least: int) -> int:
    """So many groups that products of them are rounded in one way: a multiple of `least`, and not none."""
    return max(1, -(-groups // least)) * least


class InBlocks(LayerCache, ABC):
    """One layer's cache whose parts lie in blocks: `_pool` gives each as [blocks, heads, BLOCK / every, width].

    pieces: parts of the forward's tokens, one after another, and their tiles. Tokens of no piece fill up: they get what the first got.
    """

    def __init__(self, layout: CacheLayout, pieces: Sequence[tuple[slice, Tiles]]) -> None:
        self._layout, self._pieces = layout, pieces
        self._written: set[str] = set()

    @abstractmethod
    def _keep(self, part: CachePart, rows: Tensor) -> None: ...

    @abstractmethod
    def _pool(self, name: str) -> Tensor: ...

    @abstractmethod
    def _groups(self, name: str, every: int) -> tuple[Tensor, Tensor]: ...

    def write(self, parts: Mapping[str, Tensor]) -> None:
        """See `LayerCache`."""
        self._layout.check_write(parts)
        for name, rows in parts.items():
            self._keep(self._layout.parts[name], rows)
        self._written.update(parts)

    def groups(self, part: str, every: int) -> tuple[Tensor, Tensor]:
        """See `LayerCache`."""
        if self._read(part).every > 1 or every < 1 or BLOCK % every:
            raise ValueError(
                f"attention kind '{self._layout.kind}' asks for groups of {every} rows of the cached part '{part}': they must be rows of one "
                f"token each, and their number divide {BLOCK}"
            )
        return self._groups(part, every)

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
        if selected is None and window is None and self._read(keys).every == 1:
            pools = self._pools(keys, values, value_width)
            return self._joined([attend(q[some], *pools, tiles, scale) for some, tiles in self._pieces], len(q))
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
        pools, every = self._pools(keys, values, value_width), self._layout.parts[keys].every
        if window is not None and window < 1:
            raise ValueError(f"attention kind '{self._layout.kind}' attends to a window of {window} tokens")
        outs, lses = [], []
        for some, tiles in self._pieces:
            mask = restricted(tiles, every, window, None if selected is None else selected.rows[some])
            out, lse = attend_within(q[some], *pools, tiles, scale, mask)
            outs.append(out)
            lses.append(lse)
        return self._joined(outs, len(q)), self._joined(lses, len(q))

    def select(self, q: Tensor, weights: Tensor, part: str, budget: int) -> Selection:
        """See `LayerCache`."""
        if self._read(part) and budget < 1:
            raise ValueError(f"attention kind '{self._layout.kind}' selects {budget} rows of the cached part '{part}'")
        found = [select(q[some], weights[some], self._pool(part), tiles, budget) for some, tiles in self._pieces]
        most = max(one.rows.shape[1] for one in found)
        rows = [F.pad(one.rows, (0, most - one.rows.shape[1]), value=-1) for one in found]
        scores = [F.pad(one.scores, (0, most - one.rows.shape[1]), value=-torch.inf) for one in found]
        return Selection(self._joined(rows, len(q)), self._joined(scores, len(q)))

    def gather(self, part: str, selected: Selection) -> Tensor:
        """See `LayerCache`."""
        self._read(part)
        found = [gather(self._pool(part), tiles, selected.rows[some]) for some, tiles in self._pieces]
        return self._joined(found, len(selected.rows))

    def _read(self, name: str) -> CachePart:
        if name not in self._written:
            kind, name = self._layout.kind, self._layout.part(name).name
            raise ValueError(f"attention kind '{kind}' reads the cached part '{name}' before it writes it")
        return self._layout.parts[name]

    def _pools(self, keys: str, values: str, value_width: int | None) -> tuple[Tensor, Tensor | int]:
        """As `rorqual.ops.paged.attend` takes them: values that begin the keys as their number of columns."""
        if self._read(keys).every != self._read(values).every:
            raise ValueError(
                f"attention kind '{self._layout.kind}' attends by the keys '{keys}' to the values '{values}', which have rows for other tokens"
            )
        pool = self._pool(keys)
        return (
            (pool, value_width or pool.shape[-1]) if keys == values else (pool, self._pool(values)[..., :value_width])
        )

    @staticmethod
    def _joined(parts: list[Tensor], tokens: int) -> Tensor:
        spare = tokens - sum(map(len, parts))
        if spare:
            parts = [*parts, parts[0][:1].expand(spare, *parts[0].shape[1:])]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class Sheet:
    """Implements `Cache` for a batch that is fed whole; nothing is kept, and gradients pass.

    positions [batch, seq] begin at 0 in each document; segments [batch, seq] are document numbers (None: a row is one); layouts: of each
    layer's parts.
    """

    def __init__(self, positions: Tensor, segments: Tensor | None, layouts: Sequence[CacheLayout] = ()) -> None:
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
        self.device, self.layouts = positions.device, layouts
        self.tiles = tiles_of(np.zeros(len(count), np.int64), count, block_table, QUERIES, self.device)
        place = np.full(int(blocks.sum()) * BLOCK, len(flat))  # one token more stands for what a block does not hold
        place[np.repeat(before * BLOCK, count) + flat] = np.arange(len(flat))
        self._place, self._at = place, flat
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int) -> LayerCache:
        """What one layer writes, until it is forgotten."""
        return _SheetLayer(self, self.layouts[index])

    def table(self, rope: Rope, dim: int) -> tuple[Tensor, Tensor]:
        """See `Cache`."""
        return angles(rope, dim, int(self._at.max()) + 1, self.device)

    def rows(self, every: int) -> tuple[Tensor, Tensor]:
        """The last token of each group of `every` [groups], filled up; and for each row of the blocks [blocks * BLOCK / every] its group, or the
        number of groups where it has none."""
        if every not in self._known:
            ends = np.flatnonzero(self._at % every == every - 1)
            last = np.zeros(len(ends) if every == 1 else fill(len(ends), self.tiles.rows.least), np.int64)
            last[: len(ends)] = ends
            group = np.full(len(self._at) + 1, len(last))
            group[ends] = np.arange(len(ends))
            places = group[self._place[every - 1 :: every]]
            self._known[every] = (torch.from_numpy(last).to(self.device), torch.from_numpy(places).to(self.device))
        return self._known[every]


class _SheetLayer(InBlocks):
    def __init__(self, sheet: Sheet, layout: CacheLayout) -> None:
        super().__init__(layout, [(slice(None), sheet.tiles)])
        self._sheet = sheet
        self._rows: dict[str, Tensor] = {}
        self._blocks: dict[str, Tensor] = {}

    def _keep(self, part: CachePart, rows: Tensor) -> None:
        self._rows[part.name] = rows

    def _groups(self, name: str, every: int) -> tuple[Tensor, Tensor]:
        last, _ = self._sheet.rows(every)
        at = (last.unsqueeze(1) + torch.arange(1 - every, 1, device=last.device)).clamp(min=0)
        return self._rows[name].index_select(0, at.flatten()).unflatten(0, at.shape), last

    def _pool(self, name: str) -> Tensor:
        """[rows, heads, width] -> [blocks, heads, BLOCK / every, width]."""
        if name not in self._blocks:
            rows, every = self._rows[name], self._layout.parts[name].every
            longer = torch.cat((rows, rows.new_zeros(1, *rows.shape[1:])))
            blocks = longer.index_select(0, self._sheet.rows(every)[1]).unflatten(0, (-1, BLOCK // every))
            self._blocks[name] = blocks.transpose(1, 2).contiguous()
        return self._blocks[name]
