"""Paged attention: keys and values are stored in blocks of a fixed size, anywhere in memory.

The order of every sum over keys is fixed for each query. The attention scores of a block are one matrix product of fixed shape,
and each block has its own softmax. The outputs of a sequence's blocks are then added from first to last, weighted by each
block's share of the softmax over all keys. The attention output of a query is therefore bit-identical for any other sequences
in the batch and any split of a prompt into chunks. The algorithm is online softmax (Milakov and Gimelshein 2018), split over
keys.
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

from rorqual.ops.first_derivative import first_derivative_only
from rorqual.ops.row_limits import ENOUGH, RowLimits, bmm

BLOCK = 64
"""Number of keys per block. The block is the unit of KV-cache allocation, of prefix sharing and of sums over keys."""
QUERIES = 32
"""Number of queries per tile in prefill. The queries of a tile belong to one sequence and read each block together."""
CHUNK = 1 << 18
"""Number of index scores or gathered values that are processed at once. `CHUNK` values fit in the processor's cache."""
HIDDEN = np.float32(-1e30)
"""Number that is added to the attention scores of invisible keys to make their attention weights 0. With -inf instead of
`HIDDEN`, a block without visible keys would give NaN."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class QueryTiles:
    """The query tiles of a forward pass, and the (tile, key block) pairs that attention computes.

    A tile has `queries` queries of one sequence. Tiles are sorted by descending number of blocks. (tile, key block) pairs are
    sorted by the block's index in its sequence, then by tile. `counts[b]` is the number of tiles that have a block with index
    b. The tiles that have a block with index b are tiles 0 to counts[b] - 1.

    - `tile` [pairs]: the index of each pair's tile.
    - `block` [pairs]: the number of each pair's block in the pool.
    - `place` [pairs]: the index of each pair's block in its sequence.
    - `mask` [pairs, queries, BLOCK]: the numbers added to attention scores: `HIDDEN` for an invisible key, otherwise 0.
    - `gather` [tiles * queries]: the index of each query's token. A partly filled tile repeats its last token.
    - `slot` [tokens]: the index of each token's query in the tiles. `gather` and `slot` are None if query i is token i.
    - `rows`: limits on the number of rows of matrix products (`ops.row_limits`).
    - `span`: a slice of the pool that contains all blocks, or None if the blocks are far apart. With `span`, attention reads
      the slice instead of gathering blocks, and `met` and `mask` have one entry per block of the slice, in pool order.
    - `met`: the index of the tile of each entry of `mask`, or None if entry i belongs to tile i.
    - `back` [pairs]: the index of the entry of `mask` for each pair, or None if entry i belongs to pair i.
    - `last` [tokens]: the index of the entry of `mask` for the block that contains each token, or None if tiles have several
      queries.
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
    rows: RowLimits
    span: slice | None = None
    met: Tensor | None = None
    back: Tensor | None = None
    last: Tensor | None = None
    position: Ints = field(kw_only=True)
    _masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def advance_positions(self, position: Ints) -> None:
        """Update `position` and `mask` for the next decode step. Each tile must have exactly one query.

        The new position of a tile, in `position` [tiles], must be in the same block as the tile's previous position.
        """
        assert self.last is not None
        at = torch.from_numpy(position % BLOCK).to(self.mask.device)
        self.mask.view(-1).index_fill_(0, self.last * BLOCK + at, 0)
        self.position[:] = position
        self._masks.clear()

    def visibility_mask(self, every: int, window: int | None) -> Tensor:
        """Return the counterpart of `mask` for a cache part with one row per `every` tokens: [pairs, queries, BLOCK / every].

        A cached row is visible to queries at or after the last token of the row's group. With `window`, a cached row is visible
        only if the last token of the row's group is among the query's last `window` tokens.
        """
        if (every, window) not in self._masks:
            mask = self.mask
            if window is not None:
                at = torch.from_numpy(self.position).to(mask.device)
                at = (at if self.gather is None else at[self.gather]).view(-1, self.queries)
                key = self.place.unsqueeze(1) * BLOCK + torch.arange(BLOCK, device=mask.device)
                outside = key.unsqueeze(1) <= at[self.tile].unsqueeze(2) - window  # [pairs, queries, BLOCK]
                mask = mask.masked_fill(self.pairs_to_mask_order(outside), float(HIDDEN))
            self._masks[every, window] = mask[:, :, every - 1 :: every].contiguous()
        return self._masks[every, window]

    def pairs_to_mask_order(self, pairs: Tensor) -> Tensor:
        """Reorder values of (tile, key block) pairs [pairs, ...] to the order of the entries of `mask`. Entries of `mask`
        without a pair get zeros."""
        if self.back is None:
            return pairs
        return pairs.new_zeros(len(self.mask), *pairs.shape[1:]).index_copy(0, self.back, pairs)


def round_up_group_count(groups: int, least: int) -> int:
    """Round `groups` up to a positive multiple of `least`."""
    return max(1, -(-groups // least)) * least


DENSE = 1.25
"""Largest ratio of the number of blocks in a pool slice to the number of needed blocks.

Up to the ratio `DENSE`, attention reads one slice of the pool instead of gathering blocks.
"""


def build_tiles(
    first: Ints,
    count: Ints,
    block_table: npt.NDArray[np.integer],
    queries: int,
    device: torch.device | str = "cpu",
    rows: RowLimits = ENOUGH,
) -> QueryTiles:
    """Build the query tiles of a forward pass. Sequence i has `count[i]` consecutive tokens at positions first[i], first[i] +
    1, ...

    `first` and `count` are [sequences]. `block_table` [sequences, blocks] holds each sequence's block numbers in the pool.
    """
    each = -(-count // queries)
    sequence = np.repeat(np.arange(len(count)), each)
    number = np.arange(len(sequence)) - np.repeat(np.cumsum(each) - each, each)  # index of the tile in its sequence
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
    slot[flat[::-1]] = np.arange(len(flat))[::-1]  # the first query of each token; repeated queries are padding

    def to_tensor(array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    block = block_table[sequence[tile], place].astype(np.int64)
    span = _pool_slice(block) if queries == 1 else None
    entry = np.arange(len(block)) if span is None else block - span.start
    met, in_order = tile, span is None
    if span is not None:
        size = span.stop - span.start
        in_order = size == len(block) and bool((entry[1:] > entry[:-1]).all())
        needed, mask, met = mask, np.zeros((size, *mask.shape[1:]), np.float32), np.zeros(size, np.int64)
        mask[entry], met[entry] = needed, tile
    last = np.empty(len(count) if queries == 1 else 0, np.int64)
    if queries == 1:
        ends = place == blocks[tile] - 1
        last[sequence[tile[ends]]] = entry[ends]
    return QueryTiles(
        queries=queries,
        tile=to_tensor(tile),
        block=to_tensor(block),
        place=to_tensor(place),
        counts=tuple(np.bincount(place).tolist()),
        mask=to_tensor(mask),
        gather=None if plain else to_tensor(flat),
        slot=None if plain else to_tensor(slot),
        rows=rows,
        span=span,
        met=None if len(met) == len(sequence) and bool((met == np.arange(len(met))).all()) else to_tensor(met),
        back=None if in_order else to_tensor(entry),
        last=to_tensor(last) if queries == 1 else None,
        position=np.arange(int(count.sum())) + np.repeat(first - (np.cumsum(count) - count), count),
    )


def _pool_slice(block: Ints) -> slice | None:
    """Return a slice of the pool that contains all blocks in `block`, or None if the slice would contain too many
    unneeded blocks, or if a block occurs twice."""
    low, high = int(block.min()), int(block.max()) + 1
    if high - low > DENSE * len(block) or np.bincount(block - low).max() > 1:
        return None
    return slice(low, high)


@dataclass(frozen=True)
class SelectedRows:
    """The rows of a cached part that were selected for each token.

    `rows` [tokens, k] are row numbers within the token's sequence, best first. The selected rows of a token do not repeat. The
    row number -1 means no row. `scores` [tokens, k] are the selection scores of the rows, or -inf for no row. The selection
    scores have gradients if autograd is enabled.
    """

    rows: Tensor
    scores: Tensor

    def keep_top_p(self, p: float) -> SelectedRows:
        """Keep each token's fewest best rows whose weights add up to at least `p` (0 to 1).

        The weights of a token's selected rows are the softmax over the rows' scores. Twilight (2502.02770) also prunes a top-k
        selection to the top-p rows. The number of rows that a token keeps depends only on the scores of this token.
        """
        share = (self.scores.detach() - self.scores.detach()[:, :1]).double().exp().cumsum(1)
        before = F.pad(share[:, :-1], (1, 0))
        kept = (before < p * share[:, -1:]) & (self.rows >= 0)
        return SelectedRows(self.rows.where(kept, -1), self.scores.where(kept, -torch.inf))


def attend(q: Tensor, keys: Tensor, values: Tensor | int, tiles: QueryTiles, scale: float) -> Tensor:
    """Compute causal attention softmax(scale q k^T) v within each sequence. Returns [tokens, heads, repeat, d_v].

    - `q` [tokens, heads, repeat, d], with `repeat` query heads per key head.
    - `keys` [blocks, heads, BLOCK, d].
    - `values` [blocks, heads, BLOCK, d_v], or the number of leading key columns to use as values.

    The attention output is differentiable.
    """
    if torch.is_grad_enabled():
        return attend_masked(q, keys, values, tiles, scale, tiles.mask)[0]
    q = q.to(_product_dtype(q))
    k, v = _keys_and_values(keys, values, tiles, q.dtype)
    scores, weights = _block_weights(_tokens_to_tiles(q, tiles), k, tiles, scale, tiles.mask)
    if len(tiles.counts) > 1:
        share, _ = _softmax_shares(scores, weights, tiles)
        weights = weights.float().mul_(
            tiles.pairs_to_mask_order(share / _sum_blocks(share, tiles).index_select(0, tiles.tile))
        )
    return _tiles_to_tokens(_weight_values(weights, v, tiles), tiles, q.shape[2])


def attend_masked(
    q: Tensor, keys: Tensor, values: Tensor | int, tiles: QueryTiles, scale: float, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Attend to the keys that `mask` (from `selection_mask`) leaves visible.

    Returns the attention output [tokens, heads, repeat, d_v] and the log-sum-exp [tokens, heads, repeat] in fp32. A query
    without visible keys has output 0 and log-sum-exp `HIDDEN`. With an unrestricted mask, the attention output is bit-identical
    to the output of `attend`.
    """
    q = q.to(_product_dtype(q))
    k, v = _keys_and_values(keys, values, tiles, q.dtype)
    if torch.is_grad_enabled():
        out, lse = _Attend.apply(_tokens_to_tiles(q, tiles), k, v, tiles, scale, mask)
    else:
        out, lse, _ = _attend(_tokens_to_tiles(q, tiles), k, v, tiles, scale, mask)
    return _tiles_to_tokens(out, tiles, q.shape[2]), _tiles_to_tokens(lse, tiles, q.shape[2]).squeeze(-1)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, tiles: QueryTiles, scale: float, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend from query tiles [tiles, heads, rows, d] to blocks of keys [blocks, heads, size, d] and values [blocks, heads,
    size, d_v]. Block i of the keys and values belongs to entry i of `mask`.

    Returns the attention output [tiles, heads, rows, d_v], the log-sum-exp [tiles, heads, rows, 1] and the attention weights
    [blocks, heads, rows, size].
    """
    scores, weights = _block_weights(q, k, tiles, scale, mask)
    share, highest = _softmax_shares(scores, weights, tiles)
    total = _sum_blocks(share, tiles)
    weights = weights.float().mul_(tiles.pairs_to_mask_order(share / total.index_select(0, tiles.tile)))
    seen = highest > float(HIDDEN) / 2
    lse = torch.where(seen, highest + total.log(), float(HIDDEN))
    return torch.where(seen, _weight_values(weights, v, tiles), 0), lse, weights


class _Attend(torch.autograd.Function):
    """`_attend` with the backward pass of attention (Dao et al. 2022, 2205.14135, appendix B.2), and the gradient of the log-sum-exp.

    Without this backward pass, autograd would run a chain of some thirty operations.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiles: QueryTiles, scale: float, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        out, lse, weights = _attend(q, k, v, tiles, scale, mask)
        ctx.save_for_backward(q, k, v, weights, out, lse)
        ctx.tiles, ctx.scale = tiles, scale
        return out, lse

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, out, lse = ctx.saved_tensors
        tiles: QueryTiles = ctx.tiles
        seen = lse > float(HIDDEN) / 2  # other outputs are constant
        dout, dlse = (torch.where(seen, grad, 0) for grad in grads)
        both = (dout.float() * out.float()).sum(-1, keepdim=True) - dlse
        queries, each, both = (_expand_to_mask_entries(t, tiles, 0, len(k), len(k)) for t in (q, dout, both))
        queries, each, keys = queries.flatten(0, 1), each.flatten(0, 1), k.flatten(0, 1)
        dv = torch.bmm(weights.to(v.dtype).flatten(0, 1).transpose(1, 2), each)
        dweights = torch.bmm(each, v.flatten(0, 1).transpose(1, 2)).view_as(weights)
        dscores = (dweights.float() - both).mul_(weights).mul_(ctx.scale).to(q.dtype).flatten(0, 1)
        dk = torch.bmm(dscores.transpose(1, 2), queries)
        dq = torch.bmm(dscores, keys).view(*weights.shape[:3], -1)
        dq = _sum_blocks((dq if tiles.back is None else dq.index_select(0, tiles.back)).float(), tiles)
        return dq.to(q.dtype), dk.view_as(k), dv.view_as(v), None, None, None


def _product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which `torch.bmm` multiplies `x`. Autocast does not change fp64 products."""
    device = x.device.type
    rounds = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if rounds and x.dtype != torch.float64 else x.dtype


def merge_attention(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> Tensor:
    """Combine attention outputs over disjoint sets of keys into attention over all keys of these sets.

    `outs` [..., d_v] are the attention outputs. `lses` [...] are the log-sum-exps of the attention over the same sets of keys.
    An extra log-sum-exp without an attention output acts as an attention sink. The rounding of one query does not depend on
    other queries.
    """
    shares = torch.stack(tuple(lses), dim=-1).float().softmax(-1)
    parts = [out.float() * share.unsqueeze(-1) for out, share in zip(outs, shares.unbind(-1))]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total.to(outs[0].dtype)


@torch.no_grad()
def attend_selected(
    q: Tensor,
    keys: Tensor,
    values: Tensor | int,
    tiles: QueryTiles,
    scale: float,
    rows: Tensor,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend from each token to the token's selected rows [tokens, k] (-1: no row). The work is proportional to k, not to the
    sequence length.

    `attend_selected` returns the same outputs as `attend_masked` with a mask from `selection_mask`, up to rounding. The
    selected rows of each token are gathered in ascending order and form blocks of `BLOCK / every` rows. The output of a token
    therefore does not depend on other tokens, and a token that selects all visible rows gets the same bits as from `attend`.
    """
    heads, size, places = keys.shape[1], keys.shape[2], len(tiles.counts)
    every, end = BLOCK // size, places * size
    position = torch.from_numpy(tiles.position).to(rows.device).unsqueeze(1)
    last = rows * every + every - 1  # the last token of each row's group
    visible = (rows >= 0) & (last <= position)
    if window is not None:
        visible &= last > position - window
    rows = rows.where(visible, end).sort(dim=1).values
    if rows.device.type == "cpu":  # on a GPU, `int` would make the host wait for the device
        rows = rows[:, : max(1, int((rows < end).sum(1).max()))]
    rows = F.pad(rows, (0, -rows.shape[1] % size), value=end)
    blocks, tokens = rows.shape[1] // size, max(1, CHUNK // (rows.shape[1] * heads * keys.shape[3]))
    pools = [t.reshape(-1, t.shape[3]) for t in (keys, values) if not isinstance(t, int)]  # no copy if contiguous
    token = torch.arange(len(rows), device=rows.device).unsqueeze(1)
    block, offset = _locate_rows(tiles, rows.clamp(max=end - 1), token, size)
    first = (block.unsqueeze(1) * heads + torch.arange(heads, device=rows.device).view(1, -1, 1)) * size
    at = (first + offset.unsqueeze(1)).unflatten(2, (blocks, size)).permute(2, 0, 1, 3)  # [blocks, tokens, heads, size]
    hidden = (rows == end).view(-1, blocks, size).transpose(0, 1)
    outs = []
    for part in token.flatten().split(tokens):
        gathered = [
            pool.index_select(0, at[:, part].flatten()).view(blocks * len(part), heads, size, -1) for pool in pools
        ]
        pairs = torch.arange(blocks * len(part), device=rows.device)
        mask = torch.where(hidden[:, part].reshape(-1, 1, size), float(HIDDEN), 0.0)
        own = QueryTiles(
            queries=1,
            tile=pairs % len(part),
            block=pairs,
            place=pairs // len(part),
            counts=(len(part),) * blocks,
            mask=mask,
            gather=None,
            slot=None,
            rows=tiles.rows,
            span=slice(None),
            met=None if blocks == 1 else pairs % len(part),
            position=tiles.position,
        )
        v = values if isinstance(values, int) else gathered[1]
        outs.append(attend_masked(q.index_select(0, part), gathered[0], v, own, scale, mask))
    out, lse = (torch.cat(each) for each in zip(*outs))
    return out, lse


def selection_mask(tiles: QueryTiles, every: int, window: int | None, selected: Tensor | None) -> Tensor:
    """Return the mask [pairs, queries, BLOCK / every] for `attend_masked`.

    `window` limits visible rows to the token's last `window` tokens. `selected` [tokens, k] limits visible rows to the listed
    rows; the entry -1 means no row. If `window` or `selected` is None, the argument sets no limit.
    """
    mask = tiles.visibility_mask(every, window)
    if selected is None:
        return mask
    rows = selected if tiles.gather is None else selected.index_select(0, tiles.gather)
    size, places = BLOCK // every, len(tiles.counts)
    rows = rows.where(rows >= 0, places * size)
    chosen = torch.zeros(len(rows), places * size + 1, dtype=torch.bool, device=rows.device).scatter_(1, rows, True)
    chosen = chosen[:, :-1].view(-1, tiles.queries, places, size).transpose(1, 2)[tiles.tile, tiles.place]
    return mask.masked_fill(~tiles.pairs_to_mask_order(chosen), float(HIDDEN))


def select(
    q: Tensor, weights: Tensor, keys: Tensor, tiles: QueryTiles, budget: int, scales: Tensor | None = None
) -> SelectedRows:
    """Select the `budget` visible rows with the highest `index_scores` for each token. Between rows with equal scores, the
    earlier row is selected."""
    return rank_rows(index_scores(q, weights, keys, tiles, scales), tiles, budget)


def rank_rows(scores: Tensor, tiles: QueryTiles, budget: int) -> SelectedRows:
    """For each token, return the `budget` cache rows with the highest scores. The scores are [pairs, queries, BLOCK /
    every].

    Between rows with equal scores, the earlier row is returned. A score of -inf means that the row is not visible.
    """
    queries, size = scores.shape[1:]
    number, places = tiles.counts[0], len(tiles.counts)
    whole = scores.new_full((places * number, queries, size), -torch.inf)
    whole = whole.index_copy(0, tiles.place * number + tiles.tile, scores)
    whole = whole.view(places, number, queries, size).permute(1, 2, 0, 3).reshape(number * queries, places * size)
    rows = _top_columns(whole.detach(), budget)
    scores = whole.gather(1, rows)
    scores, order = scores.sort(dim=-1, descending=True, stable=True)
    rows = rows.gather(1, order).masked_fill(scores == -torch.inf, -1)
    if tiles.slot is not None:
        scores, rows = scores.index_select(0, tiles.slot), rows.index_select(0, tiles.slot)
    return SelectedRows(rows, scores)


def _top_columns(scores: Tensor, budget: int) -> Tensor:
    """Return the columns of the `budget` highest scores of each row, in ascending order of columns. Between columns with equal
    scores, the earlier column is returned."""
    columns = scores.shape[1]
    if budget >= columns:
        return torch.arange(columns, device=scores.device).expand(len(scores), -1)
    lowest = scores.topk(budget, sorted=False).values.amin(1, keepdim=True)
    above, equal = scores > lowest, scores == lowest
    chosen = above | (equal & (equal.cumsum(1) <= budget - above.sum(1, keepdim=True)))
    backwards = torch.arange(columns, 0, -1, dtype=torch.int32, device=scores.device)
    return columns - torch.where(chosen, backwards, 1).topk(budget).values.long()


def index_scores(q: Tensor, weights: Tensor, keys: Tensor, tiles: QueryTiles, scales: Tensor | None = None) -> Tensor:
    """Return sum_j w_{t,j} ReLU(q_{t,j} . k_s) for each pair of tile and block [pairs, queries, BLOCK / every], in fp32.

    The sum is the index score of the lightning indexer (DeepSeek-V3.2-Exp, eq. 1). The index score of an invisible row is -inf.
    `q` is [tokens, heads, repeat, d], `weights` [tokens, heads, repeat], `keys` [blocks, heads, BLOCK / every, d] and `scales`
    [blocks, heads, BLOCK / every, 1]. Index keys are multiplied by their scales.
    """
    _, heads, repeat, _ = q.shape
    queries, size = tiles.queries, keys.shape[2]
    met = _tokens_to_tiles(q, tiles)
    gates = weights if tiles.gather is None else weights.index_select(0, tiles.gather)
    gates = gates.float().view(len(met), queries, heads * repeat, 1)
    k = _pool_blocks(keys, tiles).to(q.dtype)
    k = k if scales is None else k * _pool_blocks(scales, tiles).to(q.dtype)
    each_pair, parts = met[0, ..., 0].numel() * size, []
    for start in range(0, len(k), step := max(1, CHUNK // each_pair)):
        here = k[start : start + step].flatten(0, 1).transpose(1, 2)
        own, gate = (_expand_to_mask_entries(t, tiles, start, start + step, len(k)) for t in (met, gates))
        products = bmm(own.flatten(0, 1), here, tiles.rows.most).float().relu_()
        each = products.view(len(own), heads, -1, size)[:, :, : queries * repeat].unflatten(2, (queries, repeat))
        each = each.transpose(1, 2).flatten(2, 3)  # [pairs, queries, heads * repeat, size]
        each = each.float() * gate if torch.is_grad_enabled() else each.float().mul_(gate)
        parts.append(each.sum(2))
    scores = torch.cat(parts) + 0.0  # turn -0 into 0, because some sorts place -0 after 0
    scores = scores.masked_fill(tiles.visibility_mask(BLOCK // size, None) < 0, -torch.inf)
    return scores if tiles.back is None else scores.index_select(0, tiles.back)


@torch.no_grad()
def attention_mass(q: Tensor, keys: Tensor, tiles: QueryTiles, scale: float, mask: Tensor) -> Tensor:
    """Return the attention weights, averaged over all heads, of each pair of tile and block [pairs, queries, BLOCK / every].

    The arguments are the same as in `attend_masked`. The attention weights of a query add up to 1 over the rows that `mask`
    leaves visible.
    """
    _, heads, repeat, _ = q.shape
    queries, size = mask.shape[1:]
    k = _pool_blocks(keys, tiles).to(q.dtype)
    scores, weights = _block_weights(_tokens_to_tiles(q, tiles), k, tiles, scale, mask)
    share, _ = _softmax_shares(scores, weights, tiles)
    share = share / _sum_blocks(share, tiles).index_select(0, tiles.tile)
    weights = weights if tiles.back is None else weights.index_select(0, tiles.back)
    each = (weights.float() * share)[:, :, : queries * repeat]
    return each.view(-1, heads, queries, repeat, size).mean((1, 3))


def index_kl(scores: Tensor, mass: Tensor, tiles: QueryTiles, mask: Tensor) -> Tensor:
    """Return KL(p || softmax(I)) of each token [tokens], over the rows that `mask` leaves visible, in nats.

    The KL divergence is the loss of the lightning indexer (DeepSeek-V3.2-Exp, eq. 3 and 4). `scores` are the index scores I,
    from `index_scores`. `mass` are the attention weights p, from `attention_mass` with the same mask. Only `scores` receives a
    gradient.
    """
    hidden = (mask if tiles.back is None else mask.index_select(0, tiles.back)) < 0
    scores = scores.masked_fill(hidden, float(HIDDEN)).unsqueeze(1)  # one head: [pairs, 1, queries, size]
    lse = _logsumexp(scores, scores.softmax(-1))
    highest = _max_blocks(lse.detach(), tiles)
    total = _sum_blocks((lse - highest.index_select(0, tiles.tile)).exp(), tiles).log() + highest
    log_q = (scores - total.index_select(0, tiles.tile)).masked_fill(hidden.unsqueeze(1), 0)
    p = mass.unsqueeze(1)
    terms = (torch.special.xlogy(p, p) - p * log_q).sum(-1, keepdim=True)
    kl = _sum_blocks(terms, tiles).flatten()
    return kl if tiles.slot is None else kl.index_select(0, tiles.slot)


def gather(pool: Tensor, tiles: QueryTiles, rows: Tensor) -> Tensor:
    """Return cached rows of each token's sequence, given row numbers [tokens, k] and a pool [blocks, heads, BLOCK / every, width].

    The returned rows are [tokens, k, heads, width], with zeros for the row number -1 (no row).
    """
    token = torch.arange(len(rows), device=rows.device).unsqueeze(1)
    values = pool.transpose(1, 2)[_locate_rows(tiles, rows.clamp(min=0), token, pool.shape[2])]
    return values.masked_fill((rows < 0).view(*rows.shape, 1, 1), 0)


def _locate_rows(tiles: QueryTiles, rows: Tensor, token: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the block number of each cached row, and the row's offset in the block.

    The shapes of `rows` and `token` broadcast. Each entry of `rows` is a row number in the sequence of the corresponding token
    in `token`.
    """
    number, places = tiles.counts[0], len(tiles.counts)
    table = tiles.block.new_zeros(places * number)
    table[tiles.place * number + tiles.tile] = tiles.block
    query = token if tiles.slot is None else tiles.slot[token]
    return table.view(places, number)[rows // size, query // tiles.queries], rows % size


def _tokens_to_tiles(q: Tensor, tiles: QueryTiles) -> Tensor:
    """Reshape queries [tokens, heads, repeat, d] to query tiles [tiles, heads, rows, d]. The number of rows is padded to a
    multiple of `tiles.rows.least`."""
    if tiles.gather is not None:
        q = q.index_select(0, tiles.gather)
    if tiles.queries > 1:
        q = q.unflatten(0, (-1, tiles.queries)).transpose(1, 2).flatten(2, 3)
    rows = q.shape[2]
    return F.pad(q, (0, 0, 0, tiles.rows.least - rows)) if rows < tiles.rows.least else q


def _tiles_to_tokens(out: Tensor, tiles: QueryTiles, repeat: int) -> Tensor:
    """Reshape outputs of query tiles [tiles, heads, rows, d] to outputs of tokens [tokens, heads, repeat, d]."""
    out = out[:, :, : tiles.queries * repeat]
    if tiles.queries > 1:
        out = out.unflatten(2, (tiles.queries, repeat)).transpose(1, 2).flatten(0, 1)
    return out if tiles.slot is None else out.index_select(0, tiles.slot)


def _keys_and_values(
    keys: Tensor, values: Tensor | int, tiles: QueryTiles, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the keys [blocks, heads, size, d] and values [blocks, heads, size, d_v]. Block i belongs to entry i of `mask`."""
    k = _pool_blocks(keys, tiles).to(dtype)
    return k, k[..., :values] if isinstance(values, int) else _pool_blocks(values, tiles).to(dtype)


def _weight_values(weights: Tensor, v: Tensor, tiles: QueryTiles) -> Tensor:
    """Return the weighted sums of the values [tiles, heads, rows, d_v]: one matrix product per block, added from first to last
    block."""
    mixed = torch.bmm(weights.to(v.dtype).flatten(0, 1), v.flatten(0, 1)).view(*weights.shape[:3], -1)
    mixed = mixed if tiles.back is None else mixed.index_select(0, tiles.back)
    return mixed if len(tiles.counts) == 1 else _sum_blocks(mixed.float(), tiles).to(v.dtype)


def _block_weights(q: Tensor, k: Tensor, tiles: QueryTiles, scale: float, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention scores and softmax weights [blocks, heads, rows, size], given the keys `k` [blocks, heads, size, d].

    Block i belongs to entry i of `mask`. The softmax of a block covers only the keys of the block.
    """
    _, heads, rows, _ = q.shape
    queries, size = mask.shape[1:]
    met = _expand_to_mask_entries(q, tiles, 0, len(k), len(k))
    scores = bmm(met.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), tiles.rows.most)
    wide = scores.view(len(k), heads, queries, -1, size)  # in decode, all rows of a tile belong to its single query
    scores = torch.add(mask.view(-1, 1, queries, 1, size), wide, alpha=scale).view(len(k), heads, rows, size)
    return scores, scores.softmax(-1)


def _logsumexp(scores: Tensor, weights: Tensor) -> Tensor:
    """Return the log-sum-exp over the last dimension, given `weights = scores.softmax(-1)`. The last dimension is kept, with
    size 1.

    `Tensor.logsumexp` calls torch's `exp`, which takes 15 to 100 times as long if the exponential underflows. The exponential
    of an invisible key's score, which contains `HIDDEN`, underflows.
    """
    return scores.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log()


def _expand_to_mask_entries(of_tiles: Tensor, tiles: QueryTiles, start: int, stop: int, entries: int) -> Tensor:
    """Expand the values of all tiles [tiles, ...] to the entries of `mask`: each entry of `mask` gets the value of the entry's
    tile.

    The returned tensor covers the entries `start` to `stop` - 1 of `mask`. `entries` is the number of all entries of `mask`.
    """
    if len(of_tiles) == 1:
        return of_tiles.expand(min(stop, entries) - start, *of_tiles.shape[1:])  # no copy
    return of_tiles[start:stop] if tiles.met is None else of_tiles.index_select(0, tiles.met[start:stop])


def _softmax_shares(scores: Tensor, weights: Tensor, tiles: QueryTiles) -> tuple[Tensor, Tensor]:
    """Return each block's share of each row's softmax [pairs, heads, rows, 1], and each row's highest score [tiles, heads,
    rows, 1].

    A block's share of the softmax is not normalized. The share is the sum of the row's exponentials in the block, divided by
    the exponential of the row's highest score. The share is computed from the block's largest softmax weight, which is
    exp(block maximum) divided by the block's sum of exponentials.

    A block without visible keys has a share of exactly 0 of the softmax. If a row has only one block with visible keys, the
    normalized share of this block is exactly 1. Blocks without visible keys therefore do not change the rounding of a query.
    """
    top, most = scores.amax(-1, keepdim=True), weights.amax(-1, keepdim=True)
    if tiles.back is not None:
        top, most = top.index_select(0, tiles.back), most.index_select(0, tiles.back)
    highest = _max_blocks(top, tiles)
    return (top - highest.index_select(0, tiles.tile)).exp() / most, highest


def _pool_blocks(pool: Tensor, tiles: QueryTiles) -> Tensor:
    return pool.index_select(0, tiles.block) if tiles.span is None else pool[tiles.span]


def _max_blocks(parts: Tensor, tiles: QueryTiles) -> Tensor:
    """Return the maximum of `parts` over the blocks of each tile: `parts` [pairs, heads, rows, 1] -> [tiles, heads, rows,
    1]."""
    first, further = parts.split((tiles.counts[0], len(parts) - tiles.counts[0]))
    index = tiles.tile[len(first) :].view(-1, 1, 1, 1).expand_as(further)
    return first.scatter_reduce(0, index, further, "amax")


def _sum_blocks(parts: Tensor, tiles: QueryTiles) -> Tensor:
    """Return the sum of `parts` over the blocks of each tile: `parts` [pairs, ...] -> [tiles, ...]. A CPU adds the parts from
    first to last block."""
    first = tiles.counts[0]
    return parts[:first].index_add(0, tiles.tile[first:], parts[first:])
