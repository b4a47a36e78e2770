"""Attention over a cache in blocks: what a step says of its batch, how a block lies in memory, and who computes."""

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
"""The slot of a token that fills up a step and is not kept."""
NOBODY = 0
"""The block that such tokens write to; no sequence has it."""
PAIRS = 48
"""Tiles of queries times blocks that attention works on at once: so many scores stay in a processor's cache."""


@dataclass(frozen=True)
class AttentionMetadata:
    """Which tokens of a forward belong to which sequence, and where they are kept: arrays of int64 on the host, named as vLLM names them.

    query_start_loc [sequences + 1]: sequence i brings the tokens query_start_loc[i] up to query_start_loc[i + 1] - 1 of the forward.
    seq_lens [sequences]: the tokens of each so far, with these. block_table [sequences, blocks or more]: the numbers of its blocks; what
    stands behind the last that it needs has no meaning. slot_mapping [tokens]: number of a block times `BLOCK` plus the place in it; `PAD`
    for tokens that fill up, which come last.
    """

    query_start_loc: Ints
    seq_lens: Ints
    block_table: Ints
    slot_mapping: Ints

    @property
    def query_lens(self) -> Ints:
        """[sequences]: the tokens that each brings."""
        return np.diff(self.query_start_loc)

    @property
    def first(self) -> Ints:
        """[sequences]: the position of the first token that each brings."""
        return self.seq_lens - self.query_lens


@dataclass(frozen=True)
class Plan:
    """How a `PagedAttention` answers for one forward; every layer reads the same one. A subclass of that may have a plan of its own type.

    pieces: parts of the forward's tokens, one after another, and their tiles; a token of no piece fills up. decode: the block table of the
    piece, where there is one, in which each sequence brings a single token. rows: of a product, `ops.rows`.
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
        """[rows * heads]: where this forward's rows of a part go in a pool that is seen as [blocks * heads * BLOCK / every, width]."""
        if (heads, every) not in self._places:
            slot = self.metadata.slot_mapping.clip(min=0) if every == 1 else self._completed(every)[1]
            block, offset = np.divmod(slot, BLOCK)
            rows = (block[:, None] * heads + np.arange(heads)) * (BLOCK // every) + offset[:, None] // every
            self._places[heads, every] = self.tensor(rows.reshape(-1))
        return self._places[heads, every]

    def groups(self, every: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of each group of `every` tokens that the forward completes: its block [groups, 1], its offsets there [groups, every], and its last
        token [groups]."""
        if every not in self._groups:
            last, slot = self._completed(every)
            block, offset = np.divmod(slot, BLOCK)
            at = offset[:, None] + np.arange(1 - every, 1)
            self._groups[every] = self.tensor(block[:, None]), self.tensor(at), self.tensor(last)
        return self._groups[every]

    def _completed(self, every: int) -> tuple[Ints, Ints]:
        """The last token of each group and its slot [groups]; what fills up is token 0, and nobody's."""
        if every not in self._ends:
            slot = self.metadata.slot_mapping
            found = np.flatnonzero((slot % every == every - 1) & (slot != PAD))
            last = np.zeros(paged.fill(len(found), self.rows.least), np.int64)
            ends = np.full_like(last, NOBODY * BLOCK + every - 1)
            last[: len(found)], ends[: len(found)] = found, slot[found]
            self._ends[every] = last, ends
        return self._ends[every]

    def tensor(self, array: Ints) -> Tensor:
        """The array where the plan's pools are."""
        return torch.from_numpy(array).to(self.device)


class PagedAttention:
    """Attention to keys that lie in blocks, by `ops.paged`, with gradients where these are recorded.

    A pool holds one cached part of all sequences. Here it is a tensor [blocks, heads, rows of a block, width]; nothing outside looks into
    it. A subclass that lays it out otherwise overrides `shape`, `as_blocks`, `lay_out` and `write`. One that numbers blocks otherwise
    overrides `plan`, which changes `block_table` and `slot_mapping` alike and leaves `PAD`, and `read`, `fill` and `lay_out`, which are given
    the engine's numbers. What fills up is written to block 0 (`NOBODY`) as `plan` numbers it, so that 0 stays 0; in `lay_out` block 0 is one
    like the others. A numbering may not depend on how many blocks there are; `shape` may give more. `rorqual.ops.backends.backend` tries a
    subclass on a small cache, and refuses it where its methods contradict each other.
    """

    def __init__(self, rows: Rows = LOOSE) -> None:
        self.rows = rows

    def plan(self, metadata: AttentionMetadata, device: torch.device, last: Plan | None = None) -> Plan:
        """What all layers of a forward share, once a forward. last: the plan of the step before, from which this one may take what still
        holds; nobody reads that plan again."""
        first, count = metadata.first, metadata.query_lens
        decoding = int((np.cumsum(count != 1) == 0).sum())  # those before the first of more than one token
        most = sys.maxsize if torch.is_grad_enabled() else PAIRS  # the gradient of a pool is made once for each piece
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
        """Tiles of the first `n` sequences, one query each: those of the last step, moved on, where only positions are new."""
        position = metadata.first[:n]
        table = metadata.block_table[:n, : int(position.max()) // BLOCK + 1]
        if last is not None and last.decode is not None and last.rows == self.rows and (position % BLOCK).all():
            tiles = last.pieces[0][1]
            if np.array_equal(tiles.position + 1, position) and np.array_equal(last.decode, table):
                tiles.move_on(position)
                return tiles, table
        return tiles_of(position, np.ones(n, np.int64), table, 1, device, self.rows), table

    # ---- how a block lies in memory

    def shape(self, blocks: int, heads: int, rows: int, width: int) -> tuple[int, ...]:
        """Of a pool, which begins as zeros."""
        return (blocks, heads, rows, width)

    def as_blocks(self, pool: Tensor) -> Tensor:
        """A view of a pool as [blocks, heads, rows, width], in the pool's own order of blocks."""
        return pool

    def lay_out(self, blocks: Tensor) -> Tensor:
        """A pool that holds these blocks [blocks, heads, rows, width], numbered from 0; with gradients where training is supported."""
        return blocks

    def read(self, pool: Tensor, blocks: Tensor) -> Tensor:
        """The contents [n, heads, rows, width] of the blocks with these numbers [n]."""
        return self.as_blocks(pool).index_select(0, blocks)

    def fill(self, pool: Tensor, blocks: Tensor, contents: Tensor) -> None:
        """Make these the contents of the blocks with these numbers: what `read` gives, in this order."""
        self.as_blocks(pool).index_copy_(0, blocks, contents)

    # ---- what a layer asks for

    def write(self, pool: Tensor, rows: Tensor, plan: Plan) -> None:
        """Keep rows [tokens, heads, width] where `slot_mapping` says; of a part with fewer rows, those of the groups that `groups` gave.

        `plan.places(heads, every)` says where, in a pool that is seen as [blocks * heads * rows of a block, width].
        """
        flat = pool.view(-1, pool.shape[-1])
        places = plan.places(pool.shape[1], BLOCK // pool.shape[2])
        flat.index_copy_(0, places, rows.reshape(-1, pool.shape[-1]).to(flat.dtype))

    def groups(self, pool: Tensor, plan: Plan, every: int) -> tuple[Tensor, Tensor]:
        """Rows of the groups of `every` tokens that this forward completes [groups, every, heads, width], filled up; and each group's last
        token [groups]."""
        block, offset, last = plan.groups(every)
        return self.as_blocks(pool).transpose(1, 2)[block, offset], last

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, plan: Plan, scale: float, width: int) -> Tensor:
        """softmax(scale q k^T) v over each token's sequence up to itself: q [tokens, heads, repeat, d] -> [tokens, heads, repeat, width].

        keys and values are pools, maybe the same; of the values the first `width` columns count.
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
        """`attend`, and the log-sum-exp [tokens, heads, repeat] in fp32, over the last `window` tokens and the rows `selected` [tokens, k]
        alone (-1: none); of a token that sees nothing, 0 and -1e30."""
        k, v = self._both(keys, values, width)
        outs, lses = [], []
        for some, tiles in plan.pieces:
            mask = paged.restricted(tiles, BLOCK // k.shape[2], window, None if selected is None else selected[some])
            out, lse = paged.attend_within(q[some], k, v, tiles, scale, mask)
            outs.append(out)
            lses.append(lse)
        return _joined(outs, len(q)), _joined(lses, len(q))

    def _both(self, keys: Tensor, values: Tensor, width: int) -> tuple[Tensor, Tensor | int]:
        """As `ops.paged.attend` takes them: values that begin the keys as their number of columns."""
        k = self.as_blocks(keys)
        return (k, width) if values is keys else (k, self.as_blocks(values)[..., :width])

    def select(self, q: Tensor, weights: Tensor, keys: Tensor, plan: Plan, budget: int) -> Selection:
        """The lightning indexer: see `ops.paged.select`."""
        k = self.as_blocks(keys)
        found = [paged.select(q[some], weights[some], k, tiles, budget) for some, tiles in plan.pieces]
        most = max(one.rows.shape[1] for one in found)
        return Selection(
            _joined([_wider(one.rows, most, -1) for one in found], len(q)),
            _joined([_wider(one.scores, most, -torch.inf) for one in found], len(q)),
        )

    def gather(self, pool: Tensor, plan: Plan, rows: Tensor) -> Tensor:
        """Rows [tokens, k] of each token's sequence: [tokens, k, heads, width]; 0 for row -1."""
        blocks = self.as_blocks(pool)
        return _joined([paged.gather(blocks, tiles, rows[some]) for some, tiles in plan.pieces], len(rows))


def _cut(first: Ints, count: Ints, most: int) -> Iterator[Ints]:
    """Sequences in groups that meet about `most` blocks each, a long one cut at tiles of queries: [3, some] of which it is, from where, how
    many tokens."""
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
    """Side by side; tokens of no piece get what the first got."""
    spare = tokens - sum(map(len, parts))
    if spare:
        parts = [*parts, parts[0][:1].expand(spare, *parts[0].shape[1:])]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
