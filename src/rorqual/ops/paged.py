"""Attention over keys that lie in blocks of one fixed size, wherever these are in memory.

The order of every sum is fixed for each query: a block's scores are one product of a fixed shape, their softmax is the block's own,
and the blocks of a sequence are added first to last, each by its share. What else is in the batch, how a prompt was
cut into chunks, and how long the neighbours are changes nothing of it. The algebra is that of the online softmax (Milakov and
Gimelshein 2018), split over the keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.ops.rows import ENOUGH, Rows, bmm

BLOCK = 64
"""Keys in a block: a page of the cache, what a prefix is shared by, and the unit of every sum over keys."""
QUERIES = 32
"""Queries of one sequence that meet a block together in a prefill."""
HIDDEN = np.float32(-1e30)
"""Added to the score of a key that a query must not see: of a finite score no weight is left, and a block without a key to see gives no NaN."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tiles:
    """Queries in tiles of `queries`, each of one sequence, and which tile meets which block of keys.

    Tiles are numbered by falling count of blocks. Pairs are ordered by the block's place in its sequence and then by tile,
    so that place b holds the tiles 0 .. counts[b] - 1.

    tile [pairs]; block [pairs]: its place in the pool; mask [pairs, queries, BLOCK]: what is added to a score, `HIDDEN` for a key that a
    query must not see, else 0. gather [tiles * queries]: the token of each query, and of a tile that is not full its last again; slot
    [tokens]: the query of each token; both None where query i is token i. rows: of a product, `ops.rows`.

    span: where the blocks lie close together, the part of the pool that holds them: then nothing is gathered from it, and `met` and
    `mask` are of every block of the part, in its order; back [pairs]: the place of each pair there (None: its own). met: the tile that
    each block meets (None: block i meets tile i). last [tokens], of tiles of one query: where in `mask` the block is in which each token
    lies.
    """

    queries: int
    tile: Tensor
    block: Tensor
    counts: tuple[int, ...]
    mask: Tensor
    gather: Tensor | None
    slot: Tensor | None
    rows: Rows
    span: slice | None = None
    met: Tensor | None = None
    back: Tensor | None = None
    last: Tensor | None = None

    def move_on(self, position: Ints) -> None:
        """Tiles of one query each, in the next step: the queries are at `position` [tiles] now, in the same blocks as before."""
        assert self.last is not None
        at = torch.from_numpy(position % BLOCK).to(self.mask.device)
        self.mask.view(-1).index_fill_(0, self.last * BLOCK + at, 0)


DENSE = 1.25
"""Blocks of a part of the pool for each that is needed, up to which it is read as it lies."""


def tiles_of(
    first: Ints,
    count: Ints,
    block_table: npt.NDArray[np.integer],
    queries: int,
    device: torch.device | str = "cpu",
    rows: Rows = ENOUGH,
) -> Tiles:
    """Tiles for tokens that lie sequence after sequence: `count[i]` of sequence i, at its positions first[i], first[i] + 1, ...

    first, count [sequences]; block_table [sequences, blocks]: where the blocks of each sequence are in the pool.
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
    mask = np.where(place[:, None, None] * BLOCK + np.arange(BLOCK) > at[tile][:, :, None], HIDDEN, np.float32(0))
    flat = gather.reshape(-1)
    plain = len(flat) == int(count.sum()) and bool((flat == np.arange(len(flat))).all())
    slot = np.empty(int(count.sum()), np.int64)
    slot[flat[::-1]] = np.arange(len(flat))[::-1]  # a token's first query: those after it fill up

    def tensor(array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    block = block_table[sequence[tile], place].astype(np.int64)
    part = _part(block) if queries == 1 else None
    here = np.arange(len(block)) if part is None else block - part.start
    met, in_order = tile, part is None
    if part is not None:
        size = part.stop - part.start
        in_order = size == len(block) and bool((here[1:] > here[:-1]).all())
        needed, mask, met = mask, np.zeros((size, *mask.shape[1:]), np.float32), np.zeros(size, np.int64)
        mask[here], met[here] = needed, tile
    last = np.empty(len(count) if queries == 1 else 0, np.int64)
    if queries == 1:
        ends = place == blocks[tile] - 1
        last[sequence[tile[ends]]] = here[ends]
    return Tiles(
        queries=queries,
        tile=tensor(tile),
        block=tensor(block),
        counts=tuple(np.bincount(place).tolist()),
        mask=tensor(mask),
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
    if rows < tiles.rows.least:
        q = F.pad(q, (0, 0, 0, tiles.rows.least - rows))
    out = attend_tiles(q, keys, values, tiles, scale)[:, :, :rows]
    if tiles.queries > 1:
        out = out.unflatten(2, (tiles.queries, repeat)).transpose(1, 2).flatten(0, 1)
    return out if tiles.slot is None else out.index_select(0, tiles.slot)


def attend_tiles(q: Tensor, keys: Tensor, values: Tensor | int, tiles: Tiles, scale: float) -> Tensor:
    """`attend` for queries in tiles: q [tiles, heads, rows, d] -> [tiles, heads, rows, d_v]; the rows of one query are side by side."""
    _, heads, rows, _ = q.shape
    k = _blocks(keys, tiles)  # [pairs, heads, BLOCK, d]
    v = k[..., :values] if isinstance(values, int) else _blocks(values, tiles)
    met = q if tiles.met is None else q.index_select(0, tiles.met)
    scores = bmm(met.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), tiles.rows.most)
    queries = tiles.mask.shape[1]
    wide = scores.view(len(k), heads, queries, -1, BLOCK)  # a decode tile's one query stands for all its rows
    scores = torch.add(tiles.mask.view(-1, 1, queries, 1, BLOCK), wide, alpha=scale).view(len(k), heads, rows, BLOCK)
    weights = scores.softmax(-1)  # fp32, each block's by itself
    mixed = torch.bmm(weights.to(v.dtype).flatten(0, 1), v.flatten(0, 1)).view(len(k), heads, rows, -1)
    if tiles.back is not None:
        mixed = mixed.index_select(0, tiles.back)
    if len(tiles.counts) == 1:
        return mixed
    share = _shares(scores, weights, tiles)
    share = share / _added(share, tiles).index_select(0, tiles.tile)
    return _added(mixed.float() * share, tiles).to(q.dtype)


def _shares(scores: Tensor, weights: Tensor, tiles: Tiles) -> Tensor:
    """What each block's mean counts for, [pairs, heads, rows, 1]: its sum of exponentials over the exponential of the tile's highest score.

    The largest weight of a block is 1 over its sum of exponentials. A block of which a query sees nothing counts for exactly 0; divided by the
    sum of all, a single block counts for exactly 1: a query is rounded in one way, whatever blocks it meets in vain.
    """
    top, most = scores.detach().amax(-1, keepdim=True), weights.detach().amax(-1, keepdim=True)
    whole = scores.logsumexp(-1, keepdim=True) if torch.is_grad_enabled() else None
    if tiles.back is not None:
        top, most = top.index_select(0, tiles.back), most.index_select(0, tiles.back)
        whole = None if whole is None else whole.index_select(0, tiles.back)
    share = (top - _highest(top, tiles).index_select(0, tiles.tile)).exp() / most
    # In training: times 1, whose gradient is that of the block's sum of exponentials.
    return share if whole is None else share * (whole - whole.detach()).exp()


def _blocks(pool: Tensor, tiles: Tiles) -> Tensor:
    return pool.index_select(0, tiles.block) if tiles.span is None else pool[tiles.span]


def _highest(parts: Tensor, tiles: Tiles) -> Tensor:
    """The most of a tile's blocks: parts [pairs, heads, rows, 1] -> [tiles, heads, rows, 1]."""
    first, further = parts.split((tiles.counts[0], len(parts) - tiles.counts[0]))
    index = tiles.tile[len(first) :].view(-1, 1, 1, 1).expand_as(further)
    return first.scatter_reduce(0, index, further, "amax")


def _added(parts: Tensor, tiles: Tiles) -> Tensor:
    """The sum over a tile's blocks, on a CPU first to last: parts [pairs, ...] -> [tiles, ...]."""
    first = tiles.counts[0]
    return parts[:first].index_add(0, tiles.tile[first:], parts[first:])
