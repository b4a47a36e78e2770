"""Attention over keys that lie in blocks of one fixed size, wherever these are in memory.

The order of every sum is fixed for each query: a block's scores are one product of a fixed shape, weighed by the block's own
maximum, and the blocks of a sequence are added first to last, each by its share. What else is in the batch, how a prompt was
cut into chunks, and how long the neighbours are changes nothing of it. The algebra is that of the online softmax (Milakov and
Gimelshein 2018), split over the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
"""Keys in a block: a page of the cache, what a prefix is shared by, and the unit of every sum over keys."""
MIN_ROWS = 4
"""Rows from which on a product's rounding no longer depends on their number (measured: docs/LOG.md, 'the same bits')."""


QUERIES = 32
"""Queries of one sequence that meet a block together in a prefill."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tiles:
    """Queries in tiles of `queries`, each of one sequence, and which tile meets which block of keys.

    Tiles are numbered by falling count of blocks. Pairs are ordered by the block's place in its sequence and then by tile,
    so that place b holds the tiles 0 .. counts[b] - 1. tile [pairs]; block [pairs], its place in the pool; hidden [pairs, queries, BLOCK],
    the keys that a query must not see. gather [tiles * queries]: the token of each query, and of a tile that is not full its last again;
    slot [tokens]: the query of each token. Both are None where query i is token i. rows: what a product's rows are filled up to.
    span: where the blocks lie close together, the part of the pool that holds them: then nothing is gathered from it, and `met` and
    `hidden` are of every block of the part, in its order; back [pairs]: the place of each pair there (None: its own). met: the tile that
    each block meets (None: block i meets tile i). last [tokens],
    of tiles of one query: where in `hidden` the block is in which each token lies.
    """

    queries: int
    tile: Tensor
    block: Tensor
    counts: tuple[int, ...]
    hidden: Tensor
    gather: Tensor | None
    slot: Tensor | None
    rows: int = MIN_ROWS
    span: slice | None = None
    met: Tensor | None = None
    back: Tensor | None = None
    last: Tensor | None = None

    def move_on(self, position: Ints) -> None:
        """Tiles of one query each, in the next step: the queries are at `position` [tiles] now, in the same blocks as before."""
        assert self.last is not None
        at = torch.from_numpy(position % BLOCK).to(self.hidden.device)
        self.hidden.view(-1).index_fill_(0, self.last * BLOCK + at, False)


DENSE = 1.25
"""Blocks of a part of the pool for each that is needed, up to which it is read as it lies."""


def tiles_of(
    first: Ints,
    count: Ints,
    tables: npt.NDArray[np.integer],
    queries: int,
    device: torch.device | str = "cpu",
    rows: int = MIN_ROWS,
) -> Tiles:
    """Tiles for tokens that lie sequence after sequence: `count[i]` of sequence i, at its positions first[i], first[i] + 1, ...

    first, count [sequences]; tables [sequences, blocks]: where the blocks of each sequence are in the pool.
    """
    each = -(-count // queries)
    sequence = np.repeat(np.arange(len(count)), each)
    number = np.arange(len(sequence)) - np.repeat(np.cumsum(each) - each, each)  # of a tile in its sequence
    begin = number * queries
    size = np.minimum(count[sequence] - begin, queries)
    blocks = (first[sequence] + begin + size - 1) // BLOCK + 1
    order = np.argsort(-blocks, kind="stable")
    sequence, begin, size, blocks = sequence[order], begin[order], size[order], blocks[order]
    offset = np.minimum(np.arange(queries), size[:, None] - 1)  # [tiles, queries]
    gather = (np.cumsum(count) - count)[sequence][:, None] + begin[:, None] + offset
    at = (first[sequence] + begin)[:, None] + offset
    place, tile = np.nonzero(blocks > np.arange(int(blocks.max()))[:, None])
    hidden = place[:, None, None] * BLOCK + np.arange(BLOCK) > at[tile][:, :, None]
    flat = gather.reshape(-1)
    plain = len(flat) == int(count.sum()) and bool((flat == np.arange(len(flat))).all())
    slot = np.empty(int(count.sum()), np.int64)
    slot[flat[::-1]] = np.arange(len(flat))[::-1]  # a token's first query: those after it fill up

    def tensor(array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    block = tables[sequence[tile], place].astype(np.int64)
    part = _part(block) if queries == 1 else None
    here = np.arange(len(block)) if part is None else block - part.start
    met, in_order = tile, part is None
    if part is not None:
        size = part.stop - part.start
        in_order = size == len(block) and bool((here[1:] > here[:-1]).all())
        seen, hidden, met = hidden, np.zeros((size, *hidden.shape[1:]), np.bool_), np.zeros(size, np.int64)
        hidden[here], met[here] = seen, tile
    last = np.empty(len(count) if queries == 1 else 0, np.int64)
    if queries == 1:
        ends = place == blocks[tile] - 1
        last[sequence[tile[ends]]] = here[ends]
    return Tiles(
        queries=queries,
        tile=tensor(tile),
        block=tensor(block),
        counts=tuple(np.bincount(place).tolist()),
        hidden=tensor(hidden),
        gather=None if plain else tensor(flat),
        slot=None if plain else tensor(slot),
        rows=rows,
        span=part,
        met=None if len(met) == len(sequence) and bool((met == np.arange(len(met))).all()) else tensor(met),
        back=None if in_order else tensor(here),
        last=tensor(last) if queries == 1 else None,
    )


def _part(block: Ints) -> slice | None:
    """The part of the pool that holds these blocks, where it holds little else and none is wanted twice."""
    low, high = int(block.min()), int(block.max()) + 1
    if high - low > DENSE * len(block) or np.bincount(block - low).max() > 1:
        return None
    return slice(low, high)


def attend(q: Tensor, keys: Tensor, values: Tensor | int, tiles: Tiles, scale: float) -> Tensor:
    """softmax(scale q k^T) v over each token's sequence up to itself: q [tokens, heads, repeat, d] -> [tokens, heads, repeat, d_v].

    keys [blocks, heads, BLOCK, d]; values [blocks, heads, BLOCK, d_v], or a number: that many first columns of the keys. `repeat`: query heads
    of one key head. With gradients where these are recorded.
    """
    repeat = q.shape[2]
    if tiles.gather is not None:
        q = q.index_select(0, tiles.gather)
    if tiles.queries > 1:
        q = q.unflatten(0, (-1, tiles.queries)).transpose(1, 2).flatten(2, 3)  # [tiles, heads, queries * repeat, d]
    rows = q.shape[2]
    if rows < tiles.rows:
        q = F.pad(q, (0, 0, 0, tiles.rows - rows))
    out = attend_tiles(q, keys, values, tiles, scale)[:, :, :rows]
    if tiles.queries > 1:
        out = out.unflatten(2, (tiles.queries, repeat)).transpose(1, 2).flatten(0, 1)
    return out if tiles.slot is None else out.index_select(0, tiles.slot)


def attend_tiles(q: Tensor, keys: Tensor, values: Tensor | int, tiles: Tiles, scale: float) -> Tensor:
    """`attend` for queries in tiles: q [tiles, heads, rows, d] -> [tiles, heads, rows, d_v]; the rows of one query are side by side."""
    grad = torch.is_grad_enabled()
    _, heads, rows, _ = q.shape
    k = _blocks(keys, tiles)  # [pairs, heads, BLOCK, d]
    v = k[..., :values] if isinstance(values, int) else _blocks(values, tiles)
    if q.dtype == torch.float32:
        q, scale = q * scale, 1.0
    several = len(tiles.counts) > 1
    met = q if tiles.met is None else q.index_select(0, tiles.met)
    scores = torch.bmm(met.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)).float()
    if scale != 1.0:
        scores = scores * scale if grad else scores.mul_(scale)
    queries = tiles.hidden.shape[1]
    wide = scores.view(len(k), heads, queries, -1, BLOCK)  # a decode tile's one query stands for all its rows
    hidden = tiles.hidden.view(-1, 1, queries, 1, BLOCK)
    scores = (wide.masked_fill(hidden, -torch.inf) if grad else wide.masked_fill_(hidden, -torch.inf)).view_as(scores)
    # A query before the block sees nothing of it: any finite number will do, its weights are 0.
    top = scores.detach().amax(-1, keepdim=True).clamp_(min=LOWEST)
    e = (scores - top).exp() if grad else scores.sub_(top).exp_()
    mixed = torch.bmm(e.to(v.dtype), v.flatten(0, 1)).float().view(len(k), heads, rows, -1)
    top, weight = (t.view(len(k), heads, rows, 1) for t in (top, e.sum(-1, keepdim=True)))
    if tiles.back is not None:
        top, weight, mixed = (t.index_select(0, tiles.back) for t in (top, weight, mixed))
    if several:
        # Each block was weighed by its own maximum: bring them to that of all.
        share = (top - _highest(top, tiles.counts).index_select(0, tiles.tile)).exp()
        mixed, weight = _added(mixed, share, tiles.counts, grad), _added(weight, share, tiles.counts, grad)
    return (mixed / weight).to(q.dtype)


def _blocks(pool: Tensor, tiles: Tiles) -> Tensor:
    return pool.index_select(0, tiles.block) if tiles.span is None else pool[tiles.span]


LOWEST = -1e30


def _highest(parts: Tensor, counts: Sequence[int]) -> Tensor:
    total, at = parts[: counts[0]].clone(), counts[0]
    for count in counts[1:]:
        torch.maximum(total[:count], parts[at : at + count], out=total[:count])
        at += count
    return total


def _added(parts: Tensor, shares: Tensor, counts: Sequence[int], grad: bool) -> Tensor:
    """The sum over a tile's blocks, first to last, each times its share: parts, shares [pairs, ...] -> [tiles, ...]."""
    parts = parts * shares if grad else parts.mul_(shares)
    total, at = parts[: counts[0]], counts[0]
    for count in counts[1:]:
        part = parts[at : at + count]
        total = torch.cat((total[:count] + part, total[count:])) if grad else total
        if not grad:
            total[:count].add_(part)
        at += count
    return total
