"""Attention over keys in blocks of one fixed size, at any place in memory.

The order of every sum is fixed per query. A block's scores are one product of fixed shape, and its softmax covers that
block alone. A sequence's blocks are then added from first to last, each weighted by its share. So neither the other
sequences in the batch nor the chunking of a prompt changes any bit. The algebra is that of the online softmax (Milakov
and Gimelshein 2018), split over keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.ops.rows import ENOUGH, Rows, bmm

BLOCK = 64
"""Keys in a block. A block is the page of the cache, the unit of prefix sharing, and the unit of every sum over keys."""
QUERIES = 32
"""Queries of one sequence that are computed together against a block in prefill."""
HIDDEN = np.float32(-1e30)
"""Added to the score of an invisible key, whose weight becomes 0. Unlike -inf, it gives no NaN for a block without visible keys."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tiles:
    """Queries grouped in tiles of `queries`, each of one sequence, and the pairs of tiles and key blocks.

    Tiles are numbered by falling block count. Pairs are ordered by the block's place in its sequence, then by tile, so
    place b has tiles 0 .. counts[b] - 1.

    - `tile` [pairs]: the tile of each pair.
    - `block` [pairs]: the block's place in the pool.
    - `place` [pairs]: the block's place in its sequence.
    - `mask` [pairs, queries, BLOCK]: added to scores; `HIDDEN` for an invisible key, otherwise 0.
    - `gather` [tiles * queries]: the token of each query. A partial tile repeats its last token.
    - `slot` [tokens]: the query of each token. `gather` and `slot` are None if query i is token i.
    - `rows`: row limits of a product (`ops.rows`).
    - `span`: the slice of the pool that contains all blocks, if they are close together. With it nothing is gathered
      from the pool, and `met` and `mask` cover every block of the slice in pool order.
    - `met`: the tile of each block. None: block i pairs with tile i.
    - `back` [pairs]: the place of each pair in the slice. None: unchanged.
    - `last` [tokens], for tiles of one query: the place in `mask` of the block that contains each token.
    - `position` [tokens]: the position of each token in its sequence.
    """

    queries: int
    tile: Tensor
    block: Tensor
    place: Tensor
    counts: tuple[int, ...]
    mask: Tensor
    gather: Tensor | None
    slot: Tensor | None
    rows: Rows
    span: slice | None = None
    met: Tensor | None = None
    back: Tensor | None = None
    last: Tensor | None = None
    position: Ints = field(kw_only=True)
    _masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def move_on(self, position: Ints) -> None:
        """Advance tiles of one query to the next step: queries are now at `position` [tiles], in the same blocks as before."""
        assert self.last is not None
        at = torch.from_numpy(position % BLOCK).to(self.mask.device)
        self.mask.view(-1).index_fill_(0, self.last * BLOCK + at, 0)
        self.position[:] = position
        self._masks.clear()

    def mask_of(self, every: int, window: int | None) -> Tensor:
        """Return `mask` for a part with one row per `every` tokens: [pairs, queries, BLOCK / every].

        A query sees a row from the last token of its group on. With a `window`, that token must be among the last
        `window` tokens.
        """
        if (every, window) not in self._masks:
            mask = self.mask
            if window is not None:
                at = torch.from_numpy(self.position).to(mask.device)
                at = (at if self.gather is None else at[self.gather]).view(-1, self.queries)
                key = self.place.unsqueeze(1) * BLOCK + torch.arange(BLOCK, device=mask.device)
                passed = key.unsqueeze(1) <= at[self.tile].unsqueeze(2) - window  # [pairs, queries, BLOCK]
                mask = mask.masked_fill(self.in_span(passed), float(HIDDEN))
            self._masks[every, window] = mask[:, :, every - 1 :: every].contiguous()
        return self._masks[every, window]

    def in_span(self, pairs: Tensor) -> Tensor:
        """Reorder values of pairs [pairs, ...] to the order of `mask`, with zeros for blocks that belong to no pair."""
        if self.back is None:
            return pairs
        return pairs.new_zeros(len(self.mask), *pairs.shape[1:]).index_copy(0, self.back, pairs)


def fill(groups: int, least: int) -> int:
    """Return the number of groups after padding to a multiple of `least`, and at least `least`."""
    return max(1, -(-groups // least)) * least


DENSE = 1.25
"""Largest ratio of blocks in a pool slice to needed blocks at which the slice is read without gathering."""


def tiles_of(
    first: Ints,
    count: Ints,
    block_table: npt.NDArray[np.integer],
    queries: int,
    device: torch.device | str = "cpu",
    rows: Rows = ENOUGH,
) -> Tiles:
    """Build tiles for tokens stored sequence after sequence: `count[i]` of sequence i, at positions first[i], first[i] + 1, ...

    first and count are [sequences]; block_table [sequences, blocks] holds each sequence's block numbers in the pool.
    """
    each = -(-count // queries)
    sequence = np.repeat(np.arange(len(count)), each)
    number = np.arange(len(sequence)) - np.repeat(np.cumsum(each) - each, each)  # index of each tile in its sequence
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
    slot[flat[::-1]] = np.arange(len(flat))[::-1]  # a token's first query; later ones are padding

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
        place=tensor(place),
        counts=tuple(np.bincount(place).tolist()),
        mask=tensor(mask),
        gather=None if plain else tensor(flat),
        slot=None if plain else tensor(slot),
        rows=rows,
        span=part,
        met=None if len(met) == len(sequence) and bool((met == np.arange(len(met))).all()) else tensor(met),
        back=None if in_order else tensor(here),
        last=tensor(last) if queries == 1 else None,
        position=np.arange(int(count.sum())) + np.repeat(first - (np.cumsum(count) - count), count),
    )


def _part(block: Ints) -> slice | None:
    """Return the slice of the pool that contains these blocks, if it has few others and no block occurs twice."""
    low, high = int(block.min()), int(block.max()) + 1
    if high - low > DENSE * len(block) or np.bincount(block - low).max() > 1:
        return None
    return slice(low, high)


@dataclass(frozen=True)
class Selection:
    """The rows of a cached part that each token attends to.

    `rows` [tokens, k] are numbered within the token's sequence, best first; -1 means none. `scores` [tokens, k] are the
    selection scores, -inf for none, with gradients if these are recorded.
    """

    rows: Tensor
    scores: Tensor


def attend(q: Tensor, keys: Tensor, values: Tensor | int, tiles: Tiles, scale: float) -> Tensor:
    """Compute softmax(scale q k^T) v over each token's sequence up to itself: [tokens, heads, repeat, d_v].

    - `q` [tokens, heads, repeat, d], with `repeat` query heads per key head.
    - `keys` [blocks, heads, BLOCK, d].
    - `values` [blocks, heads, BLOCK, d_v], or the number of leading key columns to use as values.

    Gradients flow if they are recorded.
    """
    scores, weights, mixed = _meet(_in_tiles(q, tiles), keys, values, tiles, scale, tiles.mask)
    if len(tiles.counts) > 1:
        share, _ = _shares(scores, weights, tiles)
        share = share / _added(share, tiles).index_select(0, tiles.tile)
        mixed = _added(mixed.float() * share, tiles).to(q.dtype)
    return _in_tokens(mixed, tiles, q.shape[2])


def attend_within(
    q: Tensor, keys: Tensor, values: Tensor | int, tiles: Tiles, scale: float, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Attend to the keys that `mask` (from `restricted`) shows.

    Returns the output [tokens, heads, repeat, d_v] and the log-sum-exp [tokens, heads, repeat] in fp32. A query that
    sees nothing has output 0 and log-sum-exp `HIDDEN`. If the mask hides no more than `attend` does, outputs are
    bit-identical to it.
    """
    scores, weights, mixed = _meet(_in_tiles(q, tiles), keys, values, tiles, scale, mask)
    share, highest = _shares(scores, weights, tiles)
    total = _added(share, tiles)
    mixed = _added(mixed.float() * (share / total.index_select(0, tiles.tile)), tiles).to(q.dtype)
    seen = highest > float(HIDDEN) / 2
    lse = torch.where(seen, highest + total.log(), float(HIDDEN))
    out = torch.where(seen, mixed, 0)
    return _in_tokens(out, tiles, q.shape[2]), _in_tokens(lse, tiles, q.shape[2]).squeeze(-1)


def merge(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> Tensor:
    """Combine attention over several sets of keys into attention over their union.

    outs [..., d_v] come with their log-sum-exps [...]. One extra log-sum-exp acts as a sink, whose share is dropped.
    The rounding of each query is fixed.
    """
    shares = torch.stack(tuple(lses), dim=-1).float().softmax(-1)
    parts = [out.float() * share.unsqueeze(-1) for out, share in zip(outs, shares.unbind(-1))]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return whole.to(outs[0].dtype)


def restricted(tiles: Tiles, every: int, window: int | None, selected: Tensor | None) -> Tensor:
    """Return the mask [pairs, queries, BLOCK / every] for `attend_within`.

    A token sees its last `window` tokens (None: all), and among these the rows `selected` [tokens, k] (None: all). -1
    selects nothing.
    """
    mask = tiles.mask_of(every, window)
    if selected is None:
        return mask
    rows = selected if tiles.gather is None else selected.index_select(0, tiles.gather)
    size, places = BLOCK // every, len(tiles.counts)
    rows = rows.where(rows >= 0, places * size)
    chosen = torch.zeros(len(rows), places * size + 1, dtype=torch.bool, device=rows.device).scatter_(1, rows, True)
    chosen = chosen[:, :-1].view(-1, tiles.queries, places, size).transpose(1, 2)[tiles.tile, tiles.place]
    return mask.masked_fill(~tiles.in_span(chosen), float(HIDDEN))


def select(q: Tensor, weights: Tensor, keys: Tensor, tiles: Tiles, budget: int) -> Selection:
    """Select the `budget` visible rows with the highest sum_j w_{t,j} ReLU(q_{t,j} . k_s) for each token.

    This is the lightning indexer (DeepSeek-V3.2-Exp, eq. 1 and 2). Equal scores take the earlier row. q [tokens, heads,
    repeat, d], weights [tokens, heads, repeat], keys [blocks, heads, BLOCK / every, d]. Scores are fp32.
    """
    _, heads, repeat, _ = q.shape
    queries, size = tiles.queries, keys.shape[2]
    met = _in_tiles(q, tiles)
    gates = weights if tiles.gather is None else weights.index_select(0, tiles.gather)
    gates = gates.float().view(len(met), queries, heads * repeat, 1)
    if tiles.met is not None:
        met, gates = met.index_select(0, tiles.met), gates.index_select(0, tiles.met)
    k = _blocks(keys, tiles).to(q.dtype)
    products = bmm(met.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), tiles.rows.most).float()
    each = products.view(len(k), heads, -1, size)[:, :, : queries * repeat].unflatten(2, (queries, repeat))
    each = each.transpose(1, 2).flatten(2, 3)  # [pairs, queries, heads * repeat, size]
    scores = (each.relu() * gates).sum(2) + 0.0  # avoid -0, which some sorts place after 0
    scores = scores.masked_fill(tiles.mask_of(BLOCK // size, None) < 0, -torch.inf)
    if tiles.back is not None:
        scores = scores.index_select(0, tiles.back)
    number, places = tiles.counts[0], len(tiles.counts)
    whole = scores.new_full((places * number, queries, size), -torch.inf)
    whole = whole.index_copy(0, tiles.place * number + tiles.tile, scores)
    whole = whole.view(places, number, queries, size).permute(1, 2, 0, 3).reshape(number * queries, places * size)
    scores, rows = (t[:, :budget] for t in whole.sort(dim=-1, descending=True, stable=True))
    rows = rows.masked_fill(scores == -torch.inf, -1)
    if tiles.slot is not None:
        scores, rows = scores.index_select(0, tiles.slot), rows.index_select(0, tiles.slot)
    return Selection(rows, scores)


def gather(pool: Tensor, tiles: Tiles, rows: Tensor) -> Tensor:
    """Return rows [tokens, k] of each token's sequence from a pool [blocks, heads, BLOCK / every, width].

    The result is [tokens, k, heads, width], with 0 for row -1.
    """
    number, places, size = tiles.counts[0], len(tiles.counts), pool.shape[2]
    table = tiles.block.new_zeros(places * number)
    table[tiles.place * number + tiles.tile] = tiles.block
    query = torch.arange(len(rows), device=rows.device) if tiles.slot is None else tiles.slot
    at = rows.clamp(min=0)
    block = table.view(places, number)[at // size, (query // tiles.queries).unsqueeze(1)]
    found = pool.transpose(1, 2)[block, at % size]
    return found.masked_fill((rows < 0).view(*rows.shape, 1, 1), 0)


def _in_tiles(q: Tensor, tiles: Tiles) -> Tensor:
    """Reshape [tokens, heads, repeat, d] to [tiles, heads, rows, d], with a query's rows adjacent, padded to `tiles.rows.least`."""
    if tiles.gather is not None:
        q = q.index_select(0, tiles.gather)
    if tiles.queries > 1:
        q = q.unflatten(0, (-1, tiles.queries)).transpose(1, 2).flatten(2, 3)
    rows = q.shape[2]
    return F.pad(q, (0, 0, 0, tiles.rows.least - rows)) if rows < tiles.rows.least else q


def _in_tokens(out: Tensor, tiles: Tiles, repeat: int) -> Tensor:
    """Reshape [tiles, heads, rows, d] to [tokens, heads, repeat, d]."""
    out = out[:, :, : tiles.queries * repeat]
    if tiles.queries > 1:
        out = out.unflatten(2, (tiles.queries, repeat)).transpose(1, 2).flatten(0, 1)
    return out if tiles.slot is None else out.index_select(0, tiles.slot)


def _meet(
    q: Tensor, keys: Tensor, values: Tensor | int, tiles: Tiles, scale: float, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend to each block separately.

    Returns scores and weights [blocks, heads, rows, keys] in the order of `mask`, and weighted means [pairs, heads,
    rows, d_v].
    """
    _, heads, rows, _ = q.shape
    queries, size = mask.shape[1:]
    k = _blocks(keys, tiles).to(q.dtype)  # [blocks, heads, size, d]
    v = k[..., :values] if isinstance(values, int) else _blocks(values, tiles).to(q.dtype)
    met = q if tiles.met is None else q.index_select(0, tiles.met)
    scores = bmm(met.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), tiles.rows.most)
    wide = scores.view(len(k), heads, queries, -1, size)  # a decode tile's single query covers all its rows
    scores = torch.add(mask.view(-1, 1, queries, 1, size), wide, alpha=scale).view(len(k), heads, rows, size)
    weights = scores.softmax(-1)  # fp32, separately for each block
    mixed = torch.bmm(weights.to(v.dtype).flatten(0, 1), v.flatten(0, 1)).view(len(k), heads, rows, -1)
    return scores, weights, mixed if tiles.back is None else mixed.index_select(0, tiles.back)


def _shares(scores: Tensor, weights: Tensor, tiles: Tiles) -> tuple[Tensor, Tensor]:
    """Return each block's share [pairs, heads, rows, 1], and the highest score [tiles, heads, rows, 1].

    A share is the block's sum of exponentials, relative to the exponential of the tile's highest score. The largest
    weight of a block is 1 over its sum of exponentials. The share of a block without visible keys is exactly 0. The
    normalised share of a tile's only visible block is exactly 1. So hidden blocks do not change a query's rounding.
    """
    top, most = scores.detach().amax(-1, keepdim=True), weights.detach().amax(-1, keepdim=True)
    whole = scores.logsumexp(-1, keepdim=True) if torch.is_grad_enabled() else None
    if tiles.back is not None:
        top, most = top.index_select(0, tiles.back), most.index_select(0, tiles.back)
        whole = None if whole is None else whole.index_select(0, tiles.back)
    highest = _highest(top, tiles)
    share = (top - highest.index_select(0, tiles.tile)).exp() / most
    # In training, multiply by 1 with the gradient of the block's sum of exponentials.
    return share if whole is None else share * (whole - whole.detach()).exp(), highest


def _blocks(pool: Tensor, tiles: Tiles) -> Tensor:
    return pool.index_select(0, tiles.block) if tiles.span is None else pool[tiles.span]


def _highest(parts: Tensor, tiles: Tiles) -> Tensor:
    """Return the maximum over a tile's blocks: parts [pairs, heads, rows, 1] -> [tiles, heads, rows, 1]."""
    first, further = parts.split((tiles.counts[0], len(parts) - tiles.counts[0]))
    index = tiles.tile[len(first) :].view(-1, 1, 1, 1).expand_as(further)
    return first.scatter_reduce(0, index, further, "amax")


def _added(parts: Tensor, tiles: Tiles) -> Tensor:
    """Return the sum over a tile's blocks, from first to last on a CPU: parts [pairs, ...] -> [tiles, ...]."""
    first = tiles.counts[0]
    return parts[:first].index_add(0, tiles.tile[first:], parts[first:])
