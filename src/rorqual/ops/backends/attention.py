"""Paged attention of a backend: the attention metadata of a step, the layout of the block pool, and the computation."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.ops import paged
from rorqual.ops.paged import BLOCK, QUERIES, Ints, QueryTiles, SelectedRows, build_tiles
from rorqual.ops.row_limits import LOOSE, RowLimits

PAD = -1
"""Slot number of padding tokens. The cache rows of padding tokens are written to block `NOBODY`."""
NOBODY = 0
"""Number of the block to which the cache rows of padding tokens are written. Block `NOBODY` belongs to no sequence."""
PAIRS = 48
"""Number of (query tile, key block) pairs that attention processes at once. The attention scores of `PAIRS` pairs fit in the
processor's cache."""


@dataclass(frozen=True)
class AttentionMetadata:
    """The sequences of a forward pass and their cache slots, as int64 arrays on the host. The names of the fields follow vLLM.

    - `query_start_loc` [sequences + 1]: tokens query_start_loc[i] to query_start_loc[i + 1] - 1 belong to sequence i.
    - `seq_lens` [sequences]: the length of each sequence, including the tokens of the forward pass.
    - `block_table` [sequences, blocks]: the block numbers of each sequence. Entries after a sequence's last needed block
      are ignored.
    - `slot_mapping` [tokens]: the slot of each token, which is its block number times `BLOCK` plus its offset in the block.
      Padding tokens come last and have the slot `PAD`.
    """

    query_start_loc: Ints
    seq_lens: Ints
    block_table: Ints
    slot_mapping: Ints

    @property
    def query_lens(self) -> Ints:
        """Number of tokens of each sequence in the forward pass [sequences]."""
        return np.diff(self.query_start_loc)

    @property
    def first_positions(self) -> Ints:
        """Position of each sequence's first token in the forward pass [sequences]."""
        return self.seq_lens - self.query_lens


@dataclass(frozen=True)
class AttentionPlan:
    """Index tensors that `PagedAttention` computes once per forward pass for all layers.

    A subclass of `PagedAttention` may use its own type of plan.

    - `pieces`: consecutive slices of the tokens, with the query tiles of each slice. Tokens after the last slice are
      padding tokens.
    - `decode`: the block table of the decode slice, whose sequences have one token each, or None if no sequence decodes.
    - `rows`: limits on the number of rows of matrix products (`ops.row_limits`).
    """

    metadata: AttentionMetadata
    device: torch.device
    pieces: Sequence[tuple[slice, QueryTiles]]
    decode: Ints | None
    rows: RowLimits
    _ends: dict[int, tuple[Ints, Ints]] = field(default_factory=dict)
    _places: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _groups: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def write_indices(self, heads: int, every: int = 1) -> Tensor:
        """Return the indices [rows * heads] at which the new rows of a cache part are written to a pool.

        The write indices refer to the first dimension of a pool viewed as [blocks * heads * BLOCK / every, width].
        """
        if (heads, every) not in self._places:
            slot = self.metadata.slot_mapping.clip(min=0) if every == 1 else self._completed_groups(every)[1]
            block, offset = np.divmod(slot, BLOCK)
            rows = (block[:, None] * heads + np.arange(heads)) * (BLOCK // every) + offset[:, None] // every
            self._places[heads, every] = self.tensor(rows.reshape(-1))
        return self._places[heads, every]

    def groups(self, every: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices of the groups of `every` tokens that the forward pass completes.

        Returns the block number of each group [groups, 1], the offsets of each group's tokens in the block [groups, every], and
        the index of each group's last token [groups].
        """
        if every not in self._groups:
            last, slot = self._completed_groups(every)
            block, offset = np.divmod(slot, BLOCK)
            at = offset[:, None] + np.arange(1 - every, 1)
            self._groups[every] = self.tensor(block[:, None]), self.tensor(at), self.tensor(last)
        return self._groups[every]

    def _completed_groups(self, every: int) -> tuple[Ints, Ints]:
        """Return two arrays [groups]: the index of each completed group's last token, and the cache slot of this token.

        For padding groups, the arrays hold token 0 and a slot in block `NOBODY`.
        """
        if every not in self._ends:
            slot = self.metadata.slot_mapping
            tokens = np.flatnonzero((slot % every == every - 1) & (slot != PAD))
            last = np.zeros(paged.round_up_group_count(len(tokens), self.rows.least), np.int64)
            ends = np.full_like(last, NOBODY * BLOCK + every - 1)
            last[: len(tokens)], ends[: len(tokens)] = tokens, slot[tokens]
            self._ends[every] = last, ends
        return self._ends[every]

    def tensor(self, array: Ints) -> Tensor:
        """Copy `array` to the device of the plan's tensors."""
        return torch.from_numpy(array).to(self.device)


class PagedAttention:
    """Differentiable paged attention, implemented by `ops.paged`.

    A pool stores one `CachePart`, such as the keys of a layer, for all sequences. In `PagedAttention` itself, a pool is a
    tensor [blocks, heads, rows per block, width]. Callers must not depend on the layout of a pool.

    A subclass with another layout overrides `shape`, `as_blocks`, `prepack_blocks` and `write`. A subclass that renumbers
    blocks overrides `plan`, `read`, `fill` and `prepack_blocks`. `plan` must renumber the blocks in `block_table` and
    `slot_mapping` in the same way, and leave `PAD` unchanged. `read`, `fill` and `prepack_blocks` receive the engine's block
    numbers. The rows of padding tokens are written to block 0 (`NOBODY`) after renumbering, so block 0 must keep its number. In
    `prepack_blocks`, block 0 has no special role.

    If a subclass renumbers blocks, the new number of a block must not depend on the size of the pool. `shape` may return the
    shape of a pool with extra blocks. `rorqual.ops.backends.backend` tests a subclass on a small cache. `backend` rejects a
    subclass whose methods use different block layouts.
    """

    def __init__(self, rows: RowLimits = LOOSE) -> None:
        self.rows = rows

    def plan(
        self, metadata: AttentionMetadata, device: torch.device, last: AttentionPlan | None = None
    ) -> AttentionPlan:
        """Build the plan of a forward pass. All layers share the plan.

        `last` is the plan of the previous step. The caller must not use `last` again, because the new plan may reuse and modify
        the contents of `last`.
        """
        first, count = metadata.first_positions, metadata.query_lens
        decoding = int((np.cumsum(count != 1) == 0).sum())  # number of leading sequences with one token each
        most = (
            sys.maxsize if torch.is_grad_enabled() else PAIRS
        )  # in training, use one slice, because each slice would allocate a gradient for the whole pool
        pieces, table = list[tuple[slice, QueryTiles]](), None
        if decoding:
            tiles, table = self._decode_tiles(metadata, decoding, device, last)
            pieces.append((slice(0, decoding), tiles))
        begin = int(metadata.query_start_loc[decoding])
        for which, at, size in _split_by_pairs(first[decoding:], count[decoding:], most):
            blocks = metadata.block_table[which + decoding, : int((at + size - 1).max()) // BLOCK + 1]
            stop = begin + int(size.sum())
            pieces.append((slice(begin, stop), build_tiles(at, size, blocks, QUERIES, device, self.rows)))
            begin = stop
        return AttentionPlan(metadata, device, pieces, table, self.rows)

    def _decode_tiles(
        self, metadata: AttentionMetadata, n: int, device: torch.device, last: AttentionPlan | None
    ) -> tuple[QueryTiles, Ints]:
        """Return the query tiles of the first `n` sequences, which have one token each.

        If only positions changed since the last step, the query tiles of `last` are reused.
        """
        position = metadata.first_positions[:n]
        table = metadata.block_table[:n, : int(position.max()) // BLOCK + 1]
        if last is not None and last.decode is not None and last.rows == self.rows and (position % BLOCK).all():
            tiles = last.pieces[0][1]
            if np.array_equal(tiles.position + 1, position) and np.array_equal(last.decode, table):
                tiles.advance_positions(position)
                return tiles, table
        return build_tiles(position, np.ones(n, np.int64), table, 1, device, self.rows), table

    # ---- block layout

    def shape(self, blocks: int, heads: int, rows: int, width: int) -> tuple[int, ...]:
        """Return the shape of a pool of `blocks` blocks and `heads` heads, with `rows` rows per block and `width` columns.

        Block pools are initialized with zeros.
        """
        return (blocks, heads, rows, width)

    def as_blocks(self, pool: Tensor) -> Tensor:
        """View a pool as [blocks, heads, rows, width]. The returned view lists the blocks in pool order."""
        return pool

    def prepack_blocks(self, blocks: Tensor) -> Tensor:
        """Convert blocks [blocks, heads, rows, width], numbered from 0, to a pool.

        `prepack_blocks` must be differentiable if the backend supports training.
        """
        return blocks

    def read(self, pool: Tensor, blocks: Tensor) -> Tensor:
        """Return the contents [n, heads, rows, width] of the blocks with numbers `blocks` [n]."""
        return self.as_blocks(pool).index_select(0, blocks)

    def fill(self, pool: Tensor, blocks: Tensor, contents: Tensor) -> None:
        """Copy `contents` [n, heads, rows, width] into the blocks with numbers `blocks` [n].

        `contents` has the dtype of the pool, which is uint8 if the part is cached in FP8.
        """
        self.as_blocks(pool).index_copy_(0, blocks, contents)

    # ---- operations of a layer

    def write(self, pool: Tensor, rows: Tensor, plan: AttentionPlan) -> None:
        """Store the rows [tokens, heads, width] of a cache part at the cache slots of their tokens.

        `rows` has the dtype of the pool, which is uint8 if the part is cached in FP8.

        For a cache part with one row per group, `rows` has one row for each group that `groups` returned.
        `plan.write_indices(heads, every)` gives the indices of the rows in a pool viewed as [blocks * heads * rows per block,
        width].
        """
        flat = pool.view(-1, pool.shape[-1])
        places = plan.write_indices(pool.shape[1], BLOCK // pool.shape[2])
        flat.index_copy_(0, places, rows.reshape(-1, pool.shape[-1]))

    def groups(self, pool: Tensor, plan: AttentionPlan, every: int) -> tuple[Tensor, Tensor]:
        """Return the cached rows of each group of `every` tokens that the forward pass completes, and the index of each group's
        last token.

        The cached rows are [groups, every, heads, width], and the token indices are [groups]. The cached rows and the token
        indices may end with padding groups.
        """
        block, offset, last = plan.groups(every)
        return self.as_blocks(pool).transpose(1, 2)[block, offset], last

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, plan: AttentionPlan, scale: float, width: int) -> Tensor:
        """Compute causal attention softmax(scale q k^T) v within each sequence.

        q [tokens, heads, repeat, d] -> [tokens, heads, repeat, width]. `keys` and `values` are pools and may be the
        same pool. Only the first `width` columns of the values are used.
        """
        k, v = self._key_value_blocks(keys, values, width)
        outs = [paged.attend(q[tokens], k, v, tiles, scale) for tokens, tiles in plan.pieces]
        return _join_slices(outs, len(q))

    def attend_with_lse(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        plan: AttentionPlan,
        scale: float,
        width: int,
        *,
        selected: Tensor | None = None,
        window: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the result of `attend` and the log-sum-exp of each softmax [tokens, heads, repeat] in fp32.

        `window` restricts attention to rows of the last `window` tokens. `selected` [tokens, k] restricts attention to the
        listed rows (-1: no row). A token without visible rows has output 0 and log-sum-exp -1e30.
        """
        k, v = self._key_value_blocks(keys, values, width)
        outs, lses = [], []
        for tokens, tiles in plan.pieces:
            if selected is not None and not torch.is_grad_enabled():  # `attend_selected` has no gradient
                out, lse = paged.attend_selected(q[tokens], k, v, tiles, scale, selected[tokens], window)
            else:
                rows = None if selected is None else selected[tokens]
                mask = paged.selection_mask(tiles, BLOCK // k.shape[2], window, rows)
                out, lse = paged.attend_masked(q[tokens], k, v, tiles, scale, mask)
            outs.append(out)
            lses.append(lse)
        return _join_slices(outs, len(q)), _join_slices(lses, len(q))

    def _key_value_blocks(self, keys: Tensor, values: Tensor, width: int) -> tuple[Tensor, Tensor | int]:
        """Convert pools to the arguments `keys` and `values` of `ops.paged.attend`.

        If `keys` and `values` are the same pool, the returned argument `values` is `width`.
        """
        k = self.as_blocks(keys)
        return (k, width) if values is keys else (k, self.as_blocks(values)[..., :width])

    def select(
        self, q: Tensor, weights: Tensor, keys: Tensor, plan: AttentionPlan, budget: int, scales: Tensor | None = None
    ) -> SelectedRows:
        """See `ops.paged.select`. `scales` is the pool of the keys' scales."""
        k, s = self.as_blocks(keys), None if scales is None else self.as_blocks(scales)
        parts = [paged.select(q[tokens], weights[tokens], k, tiles, budget, s) for tokens, tiles in plan.pieces]
        return _join_selections(parts, len(q))

    def select_by_attention(
        self, q: Tensor, keys: Tensor, plan: AttentionPlan, scale: float, budget: int
    ) -> SelectedRows:
        """Select the `budget` rows with the largest attention weights, averaged over heads. `SelectedRows.scores` are the
        averaged attention weights."""
        k, parts = self.as_blocks(keys), []
        for tokens, tiles in plan.pieces:
            mask = paged.selection_mask(tiles, BLOCK // k.shape[2], None, None)
            mass = paged.attention_mass(q[tokens], k, tiles, scale, mask)
            hidden = (mask if tiles.back is None else mask.index_select(0, tiles.back)) < 0
            parts.append(paged.rank_rows(mass.masked_fill(hidden, -torch.inf), tiles, budget))
        return _join_selections(parts, len(q))

    def index_kl(
        self,
        q: Tensor,
        keys: Tensor,
        scale: float,
        index_q: Tensor,
        weights: Tensor,
        index_keys: Tensor,
        plan: AttentionPlan,
        selected: Tensor | None = None,
        scales: Tensor | None = None,
    ) -> Tensor:
        """Return the indexer's loss for each token [tokens]: KL(attention || softmax of the index scores), in nats.

        Attention weights are averaged over heads and receive no gradient. `selected` [tokens, k] restricts attention
        and index scores to the listed rows (-1: no row). `scales` is the pool of the index keys' scales. See
        `ops.paged.index_kl`.
        """
        k, index_k = self.as_blocks(keys), self.as_blocks(index_keys)
        s, parts = None if scales is None else self.as_blocks(scales), []
        for tokens, tiles in plan.pieces:
            mask = paged.selection_mask(
                tiles, BLOCK // k.shape[2], None, None if selected is None else selected[tokens]
            )
            mass = paged.attention_mass(q[tokens], k, tiles, scale, mask)
            scores = paged.index_scores(index_q[tokens], weights[tokens], index_k, tiles, s)
            parts.append(paged.index_kl(scores, mass, tiles, mask))
        return _join_slices(parts, len(q))

    def gather(self, pool: Tensor, plan: AttentionPlan, rows: Tensor) -> Tensor:
        """Return cached rows [tokens, k, heads, width], given row numbers [tokens, k] in each token's sequence.

        For the row number -1 (no row), `gather` returns zeros.
        """
        blocks = self.as_blocks(pool)
        return _join_slices([paged.gather(blocks, tiles, rows[tokens]) for tokens, tiles in plan.pieces], len(rows))


def _split_by_pairs(first: Ints, count: Ints, most: int) -> Iterator[Ints]:
    """Split sequences into groups of about `most` (query tile, key block) pairs. Sequences with more than `most` pairs are
    split at tile boundaries.

    Each yielded group is an array [3, n] for n sequences: the indices, the first positions and the token counts of the
    sequences.
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


def _join_selections(parts: list[SelectedRows], tokens: int) -> SelectedRows:
    """Concatenate the selected rows of all slices of the tokens. Slices with fewer selected rows per token are padded with -1
    (no row)."""
    most = max(part.rows.shape[1] for part in parts)
    return SelectedRows(
        _join_slices([_pad_columns(part.rows, most, -1) for part in parts], tokens),
        _join_slices([_pad_columns(part.scores, most, -torch.inf) for part in parts], tokens),
    )


def _pad_columns(rows: Tensor, most: int, value: float) -> Tensor:
    return F.pad(rows, (0, most - rows.shape[1]), value=value)


def _join_slices(parts: list[Tensor], tokens: int) -> Tensor:
    """Concatenate the results [tokens, ...] of all slices of the tokens. Padding tokens get the result of the first token."""
    padding = tokens - sum(map(len, parts))
    if padding:
        parts = [*parts, parts[0][:1].expand(padding, *parts[0].shape[1:])]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
