"""Attention over a cache in blocks: the metadata of a step, the layout of blocks, and the computation."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.ops import paged
from rorqual.ops.paged import BLOCK, QUERIES, Ints, Selection, Tiles, tiles_of
from rorqual.ops.rows import LOOSE, Rows

PAD = -1
"""The slot of a padding token, which is not cached."""
NOBODY = 0
"""The block that padding tokens write to. No sequence owns it."""
PAIRS = 48
"""Pairs of query tiles and blocks that attention processes at once, so that scores stay in a processor's cache."""


@dataclass(frozen=True)
class AttentionMetadata:
    """The sequences of a forward pass and their places in the cache: int64 arrays on the host, with vLLM's names.

    - `query_start_loc` [sequences + 1]: sequence i has the tokens query_start_loc[i] to query_start_loc[i + 1] - 1.
    - `seq_lens` [sequences]: the length of each sequence, including these tokens.
    - `block_table` [sequences, blocks or more]: each sequence's block numbers. Entries past the last needed block are ignored.
    - `slot_mapping` [tokens]: block number times `BLOCK` plus the offset in the block, or `PAD` for padding tokens, which come last.
    """

    query_start_loc: Ints
    seq_lens: Ints
    block_table: Ints
    slot_mapping: Ints

    @property
    def query_lens(self) -> Ints:
        """Number of tokens of each sequence in this forward pass [sequences]."""
        return np.diff(self.query_start_loc)

    @property
    def first(self) -> Ints:
        """Position of each sequence's first token in this forward pass [sequences]."""
        return self.seq_lens - self.query_lens


@dataclass(frozen=True)
class Plan:
    """The precomputed part of a `PagedAttention` for one forward pass, shared by all layers. A subclass may define another plan type.

    - `pieces`: consecutive slices of the tokens with their tiles. Tokens outside all pieces are padding.
    - `decode`: the block table of the piece whose sequences have a single token each, if any.
    - `rows`: row limits of a product (`ops.rows`).
    """

    metadata: AttentionMetadata
    device: torch.device
    pieces: Sequence[tuple[slice, Tiles]]
    decode: Ints | None
    rows: Rows
    _ends: dict[int, tuple[Ints, Ints]] = field(default_factory=dict)
    _places: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _groups: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def places(self, heads: int, every: int = 1) -> Tensor:
        """Return where this forward's rows of a part are written [rows * heads].

        The places index a pool viewed as [blocks * heads * BLOCK / every, width].
        """
        if (heads, every) not in self._places:
            slot = self.metadata.slot_mapping.clip(min=0) if every == 1 else self._completed(every)[1]
            block, offset = np.divmod(slot, BLOCK)
            rows = (block[:, None] * heads + np.arange(heads)) * (BLOCK // every) + offset[:, None] // every
            self._places[heads, every] = self.tensor(rows.reshape(-1))
        return self._places[heads, every]

    def groups(self, every: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the groups of `every` tokens that the forward pass completes.

        The result is their blocks [groups, 1], offsets in the block [groups, every] and last tokens [groups].
        """
        if every not in self._groups:
            last, slot = self._completed(every)
            block, offset = np.divmod(slot, BLOCK)
            at = offset[:, None] + np.arange(1 - every, 1)
            self._groups[every] = self.tensor(block[:, None]), self.tensor(at), self.tensor(last)
        return self._groups[every]

    def _completed(self, every: int) -> tuple[Ints, Ints]:
        """Return each group's last token and its slot [groups]. Padding groups use token 0 and the padding block."""
        if every not in self._ends:
            slot = self.metadata.slot_mapping
            found = np.flatnonzero((slot % every == every - 1) & (slot != PAD))
            last = np.zeros(paged.fill(len(found), self.rows.least), np.int64)
            ends = np.full_like(last, NOBODY * BLOCK + every - 1)
            last[: len(found)], ends[: len(found)] = found, slot[found]
            self._ends[every] = last, ends
        return self._ends[every]

    def tensor(self, array: Ints) -> Tensor:
        """Copy the array to the plan's device."""
        return torch.from_numpy(array).to(self.device)


class PagedAttention:
    """Attention over keys in blocks by `ops.paged`, with gradients if these are recorded.

    A pool holds one cached part of all sequences. Here it is a tensor [blocks, heads, rows per block, width]; callers
    treat it as opaque.

    A subclass with another layout overrides `shape`, `as_blocks`, `lay_out` and `write`. A subclass that renumbers
    blocks overrides `plan`, `read`, `fill` and `lay_out`. Its `plan` must renumber `block_table` and `slot_mapping`
    alike and keep `PAD`. The other three receive the engine's block numbers. Padding is written to block 0 (`NOBODY`)
    as `plan` numbers it, so 0 must stay 0; in `lay_out` block 0 is an ordinary block.

    A numbering must not depend on the number of blocks; `shape` may return more blocks. `rorqual.ops.backends.backend`
    tests a subclass on a small cache and refuses it if its methods disagree.
    """

    def __init__(self, rows: Rows = LOOSE) -> None:
        self.rows = rows

    def plan(self, metadata: AttentionMetadata, device: torch.device, last: Plan | None = None) -> Plan:
        """Build the plan that all layers of a forward pass share.

        `last` is the previous step's plan. The new plan may reuse its contents, and the old one is not read again.
        """
        first, count = metadata.first, metadata.query_lens
        decoding = int((np.cumsum(count != 1) == 0).sum())  # sequences before the first with more than one token
        most = sys.maxsize if torch.is_grad_enabled() else PAIRS  # each piece allocates a gradient of the pool
        pieces, table = list[tuple[slice, Tiles]](), None
        if decoding:
            tiles, table = self._decoding(metadata, decoding, device, last)
            pieces.append((slice(0, decoding), tiles))
        begin = int(metadata.query_start_loc[decoding])
        for which, at, size in _cut(first[decoding:], count[decoding:], most):
            blocks = metadata.block_table[which + decoding, : int((at + size - 1).max()) // BLOCK + 1]
            stop = begin + int(size.sum())
            pieces.append((slice(begin, stop), tiles_of(at, size, blocks, QUERIES, device, self.rows)))
            begin = stop
        return Plan(metadata, device, pieces, table, self.rows)

    def _decoding(
        self, metadata: AttentionMetadata, n: int, device: torch.device, last: Plan | None
    ) -> tuple[Tiles, Ints]:
        """Return one-query tiles of the first `n` sequences, reusing the last step's tiles if only positions changed."""
        position = metadata.first[:n]
        table = metadata.block_table[:n, : int(position.max()) // BLOCK + 1]
        if last is not None and last.decode is not None and last.rows == self.rows and (position % BLOCK).all():
            tiles = last.pieces[0][1]
            if np.array_equal(tiles.position + 1, position) and np.array_equal(last.decode, table):
                tiles.move_on(position)
                return tiles, table
        return tiles_of(position, np.ones(n, np.int64), table, 1, device, self.rows), table

    # ---- block layout

    def shape(self, blocks: int, heads: int, rows: int, width: int) -> tuple[int, ...]:
        """Return the shape of a pool, which starts as zeros."""
        return (blocks, heads, rows, width)

    def as_blocks(self, pool: Tensor) -> Tensor:
        """Return a view of a pool as [blocks, heads, rows, width], in the pool's own order of blocks."""
        return pool

    def lay_out(self, blocks: Tensor) -> Tensor:
        """Return a pool of these blocks [blocks, heads, rows, width], numbered from 0, with gradients if training is supported."""
        return blocks

    def read(self, pool: Tensor, blocks: Tensor) -> Tensor:
        """Return the contents [n, heads, rows, width] of the blocks with these numbers [n]."""
        return self.as_blocks(pool).index_select(0, blocks)

    def fill(self, pool: Tensor, blocks: Tensor, contents: Tensor) -> None:
        """Overwrite the blocks with these numbers. `contents` has the form that `read` returns."""
        self.as_blocks(pool).index_copy_(0, blocks, contents)

    # ---- operations of a layer

    def write(self, pool: Tensor, rows: Tensor, plan: Plan) -> None:
        """Store rows [tokens, heads, width] at `slot_mapping`. For a part with fewer rows, store those of the groups
        that `groups` returned.

        `plan.places(heads, every)` gives the places in a pool viewed as [blocks * heads * rows per block, width].
        """
        flat = pool.view(-1, pool.shape[-1])
        places = plan.places(pool.shape[1], BLOCK // pool.shape[2])
        flat.index_copy_(0, places, rows.reshape(-1, pool.shape[-1]).to(flat.dtype))

    def groups(self, pool: Tensor, plan: Plan, every: int) -> tuple[Tensor, Tensor]:
        """Return the rows of the groups of `every` tokens that this forward pass completes, and their last tokens [groups].

        The rows are [groups, every, heads, width], padded.
        """
        block, offset, last = plan.groups(every)
        return self.as_blocks(pool).transpose(1, 2)[block, offset], last

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, plan: Plan, scale: float, width: int) -> Tensor:
        """Compute softmax(scale q k^T) v over each token's sequence up to itself.

        q [tokens, heads, repeat, d] -> [tokens, heads, repeat, width]. keys and values are pools and may be the same.
        Only the first `width` value columns are used.
        """
        k, v = self._both(keys, values, width)
        found = [paged.attend(q[some], k, v, tiles, scale) for some, tiles in plan.pieces]
        return _joined(found, len(q))

    def attend_with_lse(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        plan: Plan,
        scale: float,
        width: int,
        *,
        selected: Tensor | None = None,
        window: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend, and return the log-sum-exp [tokens, heads, repeat] in fp32 too.

        A token sees its last `window` tokens, and among these the rows `selected` [tokens, k] (-1: none). A token that
        sees nothing has output 0 and log-sum-exp -1e30.
        """
        k, v = self._both(keys, values, width)
        outs, lses = [], []
        for some, tiles in plan.pieces:
            mask = paged.restricted(tiles, BLOCK // k.shape[2], window, None if selected is None else selected[some])
            out, lse = paged.attend_within(q[some], k, v, tiles, scale, mask)
            outs.append(out)
            lses.append(lse)
        return _joined(outs, len(q)), _joined(lses, len(q))

    def _both(self, keys: Tensor, values: Tensor, width: int) -> tuple[Tensor, Tensor | int]:
        """Convert pools for `ops.paged.attend`. If the values are leading columns of the keys, return their number instead of a pool."""
        k = self.as_blocks(keys)
        return (k, width) if values is keys else (k, self.as_blocks(values)[..., :width])

    def select(self, q: Tensor, weights: Tensor, keys: Tensor, plan: Plan, budget: int) -> Selection:
        """Select rows with the lightning indexer. See `ops.paged.select`."""
        k = self.as_blocks(keys)
        found = [paged.select(q[some], weights[some], k, tiles, budget) for some, tiles in plan.pieces]
        most = max(one.rows.shape[1] for one in found)
        return Selection(
            _joined([_wider(one.rows, most, -1) for one in found], len(q)),
            _joined([_wider(one.scores, most, -torch.inf) for one in found], len(q)),
        )

    def gather(self, pool: Tensor, plan: Plan, rows: Tensor) -> Tensor:
        """Return rows [tokens, k] of each token's sequence [tokens, k, heads, width], with 0 for row -1."""
        blocks = self.as_blocks(pool)
        return _joined([paged.gather(blocks, tiles, rows[some]) for some, tiles in plan.pieces], len(rows))


def _cut(first: Ints, count: Ints, most: int) -> Iterator[Ints]:
    """Split sequences into groups of about `most` blocks each. A long sequence is split at query tiles.

    Each group is [3, some]: sequence index, first position, number of tokens.
    """
    group, pairs = list[list[int]](), 0
    for which, (start, size) in enumerate(zip(first.tolist(), count.tolist(), strict=True)):
        for begin in range(start, start + size, QUERIES):
            stop = min(begin + QUERIES, start + size)
            if pairs and pairs + stop // BLOCK + 1 > most:
                yield np.array(group).T
                group, pairs = [], 0
            pairs += stop // BLOCK + 1
            if group and group[-1][0] == which:
                group[-1][2] += stop - begin
            else:
                group.append([which, begin, stop - begin])
    if group:
        yield np.array(group).T


def _wider(rows: Tensor, most: int, value: float) -> Tensor:
    return F.pad(rows, (0, most - rows.shape[1]), value=value)


def _joined(parts: list[Tensor], tokens: int) -> Tensor:
    """Concatenate the pieces. Padding tokens get the result of the first token."""
    spare = tokens - sum(map(len, parts))
    if spare:
        parts = [*parts, parts[0][:1].expand(spare, *parts[0].shape[1:])]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
