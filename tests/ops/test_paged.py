"""Attention over blocks: what plain attention says, and each query's bits its own, whoever is beside it and wherever its blocks lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rorqual.ops import paged
from rorqual.ops.backends.attention import AttentionMetadata, PagedAttention
from rorqual.ops.paged import (
    BLOCK,
    HIDDEN,
    QUERIES,
    QueryTiles,
    attend,
    attend_masked,
    attend_selected,
    build_tiles,
    gather,
    merge_attention,
    select,
    selection_mask,
)
from rorqual.ops.row_limits import ENOUGH

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHAPES = [(1, 3, 40, 24), (2, 3, 24, 24), (3, 1, 16, 16), (1, 6, 64, 48), (4, 5, 20, 12)]
"""heads, queries of a head, d, d_v; with one head the values are the first columns of the keys. Widths are multiples of four: in others
the address of a row decides how MKL rounds it (docs/explanation/engine.md)."""


class Case:
    """Sequences of random lengths, their keys and values in one pool, in blocks in no order."""

    def __init__(self, seed: int, shape: tuple[int, int, int, int], dtype: torch.dtype, lengths: list[int]) -> None:
        self.generator, self.rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        self.heads, self.repeat, self.d, self.d_v = shape
        self.dtype, self.lengths = dtype, lengths
        self.q = [self.some(n, self.heads, self.repeat, self.d) * 3 for n in lengths]
        self.k = [self.some(n, self.heads, self.d) for n in lengths]
        self.v = [k[..., : self.d_v] if self.heads == 1 else self.some(len(k), self.heads, self.d_v) for k in self.k]

    def some(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.dtype)

    def attended(
        self, who: list[int], first: list[int], count: list[int], queries: int, shared: int = 0
    ) -> list[Tensor]:
        """Tokens first .. first + count - 1 of each sequence, all in one call, over a pool that is laid out anew.

        Of the first `shared` blocks, which must be equal, all read the first sequence's.
        """
        q, keys, values, tiles = self.laid(who, first, count, queries, shared)
        with torch.no_grad():
            return list(attend(q, keys, values, tiles, self.d**-0.5).split(count))

    def laid(
        self, who: list[int], first: list[int], count: list[int], queries: int, shared: int = 0
    ) -> tuple[Tensor, Tensor, Tensor | int, QueryTiles]:
        need = [-(-self.lengths[i] // BLOCK) for i in who]
        order = self.rng.permutation(sum(need) + int(self.rng.integers(0, 40)))[: sum(need)]
        pool = int(order.max()) + 1
        keys, values = (torch.zeros(pool, self.heads, BLOCK, w, dtype=self.dtype) for w in (self.d, self.d_v))
        tables, at = np.zeros((len(who), max(need)), np.int64), 0
        for row, (i, n) in enumerate(zip(who, need)):
            tables[row, :n] = order[at : at + n]
            for place in range(n):
                part = slice(place * BLOCK, min((place + 1) * BLOCK, self.lengths[i]))
                length = part.stop - part.start
                keys[order[at + place], :, :length] = self.k[i][part].transpose(0, 1)
                values[order[at + place], :, :length] = self.v[i][part].transpose(0, 1)
            at += n
        tables[:, :shared] = tables[0, :shared]
        tiles = build_tiles(np.array(first), np.array(count), tables, queries)
        q = torch.cat([self.q[i][f : f + c] for i, f, c in zip(who, first, count)])
        return q, keys, self.d_v if self.heads == 1 else values, tiles


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sequences_that_share_blocks_read_them_each_with_its_own_query(shape: tuple[int, int, int, int]) -> None:
    lengths, shared = [129, 150, 200, 131], 2
    case = Case(2, shape, torch.float32, lengths)
    for of in (case.k, case.v):
        for one in of[1:]:
            one[: shared * BLOCK] = of[0][: shared * BLOCK]
    alone = [case.attended([i], [0], [n], QUERIES)[0] for i, n in enumerate(lengths)]
    for _ in range(8):
        for first in ([n - 1 for n in lengths], [130, 129, 128, 130]):
            who = [i for i, f in enumerate(first) if f < lengths[i]]
            at, ones = [first[i] for i in who], [1] * len(who)
            for i, f, got in zip(who, at, case.attended(who, at, ones, 1, shared)):
                assert torch.equal(got, alone[i][f : f + 1])


# ---- a part of the keys


BUDGET, WINDOW = 9, 70
EVERY = (1, 4, 16)
GATHERS = pytest.mark.parametrize("gathers", [True, False], ids=["gathered", "masked"])


class Sparse(Case):
    """The rows that an indexer of `repeat` heads chooses, attention to those within a window, and its log-sum-exp.

    With `gathers`, attention gathers the chosen rows, as in inference. Otherwise it masks all others, as in training.
    """

    def __init__(
        self, seed: int, shape: tuple[int, int, int, int], dtype: torch.dtype, lengths: list[int], gathers: bool
    ) -> None:
        super().__init__(seed, shape, dtype, lengths)
        self.gathers = gathers
        self.weights = [self.some(n, self.heads, self.repeat) for n in lengths]

    def found(
        self,
        who: list[int],
        first: list[int],
        count: list[int],
        queries: int,
        every: int = 1,
        budget: int | None = BUDGET,
        window: int | None = WINDOW,
    ) -> list[tuple[Tensor, ...]]:
        """Of each sequence: rows and scores [count, budget], outputs, log-sum-exps, the chosen keys, outputs of dense attention."""
        q, keys, values, tiles = self.laid(who, first, count, queries)
        keys = keys[:, :, every - 1 :: every].contiguous()  # entries are the keys of each group's last token
        values = values if isinstance(values, int) else values[:, :, every - 1 :: every].contiguous()
        weights = torch.cat([self.weights[i][f : f + c] for i, f, c in zip(who, first, count)])
        with torch.no_grad():
            chosen = select(q, weights, keys, tiles, budget or 10**6)
            if budget is None or not self.gathers:
                mask = selection_mask(tiles, every, window, None if budget is None else chosen.rows)
                out, lse = attend_masked(q, keys, values, tiles, self.d**-0.5, mask)
            else:
                out, lse = attend_selected(q, keys, values, tiles, self.d**-0.5, chosen.rows, window)
            dense = attend(q, keys, values, tiles, self.d**-0.5) if every == 1 else out
            least = min(chosen.rows.shape[1], BUDGET)
            rows = torch.nn.functional.pad(chosen.rows[:, :least], (0, BUDGET - least), value=-1)
            scores = torch.nn.functional.pad(chosen.scores[:, :least], (0, BUDGET - least), value=-torch.inf)
            return list(zip(*(t.split(count) for t in (rows, scores, out, lse, gather(keys, tiles, rows), dense))))


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@GATHERS
def test_selection_and_window_are_what_a_plain_sum_says(
    gathers: bool, shape: tuple[int, int, int, int], every: int
) -> None:
    case = Sparse(0, shape, torch.float32, [1, 63, 64, 130, 7], gathers)
    whole = case.found(list(range(5)), [0] * 5, case.lengths, QUERIES, every)
    last = [n - 1 for n in case.lengths]
    for i, (rows, scores, out, lse, keys, _) in enumerate(whole):
        q, w = case.q[i].double(), case.weights[i].double()
        k, v = (t[i].double()[every - 1 :: every] for t in (case.k, case.v))
        for t in range(case.lengths[i]):
            seen = [s for s in range(len(k)) if s * every + every - 1 <= t]
            index = (torch.einsum("hrd,shd->hrs", q[t], k).relu() * w[t].unsqueeze(-1)).sum((0, 1))
            best = sorted(seen, key=lambda s: (-float(index[s]), s))[:BUDGET]
            assert rows[t].tolist() == best + [-1] * (BUDGET - len(best))
            torch.testing.assert_close(scores[t, : len(best)].double(), index[best], rtol=1e-4, atol=1e-4)
            assert torch.equal(keys[t, : len(best)].double(), k[best]) and not keys[t, len(best) :].any()
            best = [s for s in best if t - (s * every + every - 1) < WINDOW]
            if not best:
                assert not out[t].any() and (lse[t] == float(HIDDEN)).all()
                continue
            logits = torch.einsum("hrd,shd->hrs", q[t], k[best]) * case.d**-0.5
            torch.testing.assert_close(lse[t].double(), logits.logsumexp(-1), rtol=0, atol=2e-5)
            expected = torch.einsum("hrs,shv->hrv", logits.softmax(-1), v[best])
            torch.testing.assert_close(out[t].double(), expected, rtol=0, atol=2e-5)
    for i, decoded in enumerate(case.found(list(range(5)), last, [1] * 5, 1, every)):
        assert all(torch.equal(one, other[-1:]) for one, other in zip(decoded, whole[i]))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@GATHERS
def test_each_query_has_a_selection_and_bits_of_its_own(
    gathers: bool, shape: tuple[int, int, int, int], every: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, among others, in any order, in any chunk, decoded or fed, and computed in small parts."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 300, 6).tolist()
    case = Sparse(1, shape, TYPES[dtype], lengths, gathers)
    alone = [case.found([i], [0], [n], QUERIES, every)[0] for i, n in enumerate(lengths)]
    monkeypatch.setattr(paged, "CHUNK", 1 << 12)
    for _ in range(2):
        who = rng.permutation(6)[: rng.integers(2, 6)].tolist()
        first = [int(rng.integers(0, lengths[i])) for i in who]
        count = [int(rng.integers(1, lengths[i] - f + 1)) for i, f in zip(who, first)]
        for counts, queries in ((count, QUERIES), ([1] * len(who), 1)):
            for i, f, c, got in zip(who, first, counts, case.found(who, first, counts, queries, every)):
                assert all(torch.equal(one, other[f : f + c]) for one, other in zip(got, alone[i]))


@pytest.mark.parametrize("dtype", TYPES)
@GATHERS
def test_a_budget_and_a_window_for_all_change_no_bit(gathers: bool, dtype: str) -> None:
    case = Sparse(3, SHAPES[1], TYPES[dtype], [1, 64, 65, 300], gathers)
    dense = case.attended([0, 1, 2, 3], [0] * 4, case.lengths, QUERIES)
    for budget, window in ((None, None), (300, None), (None, 300), (10**6, 10**6)):
        found = case.found([0, 1, 2, 3], [0] * 4, case.lengths, QUERIES, 1, budget, window)
        assert all(torch.equal(one[2], other) for one, other in zip(found, dense))
    found = case.found([0, 1, 2, 3], [0] * 4, case.lengths, QUERIES, 1, 299, None)
    assert [torch.equal(one[2], other) for one, other in zip(found, dense)] == [True, True, True, False]


def test_of_equal_scores_the_earlier_row_is_taken() -> None:
    """Also where a score is the negative of nothing."""
    keys = torch.zeros(3, 1, BLOCK, 4)
    keys[1, 0, 7] = 1.0
    tiles = build_tiles(np.array([0]), np.array([150]), np.array([[2, 0, 1]]), QUERIES)
    q, weights = torch.ones(150, 1, 2, 4), torch.ones(150, 1, 2)
    weights[:, :, 1] = -0.5
    rows = select(q, weights, keys, tiles, 5).rows
    assert rows[149].tolist() == [135, 0, 1, 2, 3] and rows[2].tolist() == [0, 1, 2, -1, -1]
    keys[1] = -1.0
    assert select(q, -weights, keys, tiles, 3).rows[149].tolist() == [0, 1, 2]


def test_what_selects_nothing_sees_nothing() -> None:
    q, k = torch.ones(70, 1, 1, 4), torch.ones(2, 1, BLOCK, 4)
    tiles = build_tiles(np.array([0]), np.array([70]), np.array([[0, 1]]), QUERIES)
    rows = torch.full((70, 2), -1)
    rows[69, 0] = 5
    masked = attend_masked(q, k, k, tiles, 1.0, selection_mask(tiles, 1, None, rows))
    for out, lse in (masked, attend_selected(q, k, k, tiles, 1.0, rows)):
        assert not out[:69].any() and (lse[:69] == float(HIDDEN)).all()
        assert out[69].tolist() == [[[1.0] * 4]] and lse[69].tolist() == [[4.0]]


def test_what_selects_nothing_has_no_gradient() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(shape, requires_grad=True) for shape in ((70, 1, 1, 4), (2, 1, BLOCK, 4), (2, 1, BLOCK, 4)))
    tiles = build_tiles(np.array([0]), np.array([70]), np.array([[0, 1]]), QUERIES)
    out, lse = attend_masked(q, k, v, tiles, 1.0, selection_mask(tiles, 1, None, torch.full((70, 2), -1)))
    for grad in torch.autograd.grad(out.sum() + lse.clamp(max=0).sum(), (q, k, v)):
        assert not grad.any()


@pytest.mark.parametrize("every", EVERY)
def test_gradients_of_a_part_of_the_keys_are_those_of_plain_attention(every: int) -> None:
    """Two attentions and a sink, merged; and the scores of a selection."""
    torch.manual_seed(0)
    length, heads, repeat, d = 150, 2, 2, 12
    q, k, v = (torch.randn(length, heads, *more, requires_grad=True) for more in ((repeat, d), (d,), (d,)))
    sink, weights = (
        torch.randn(heads, repeat, requires_grad=True),
        torch.randn(length, heads, repeat, requires_grad=True),
    )
    blocks, scale = -(-length // BLOCK), d**-0.5
    tiles = build_tiles(np.array([0]), np.array([length]), np.arange(blocks)[None], QUERIES)

    def pool(x: Tensor, every: int) -> Tensor:
        padded = torch.cat((x, x.new_zeros(blocks * BLOCK - length, heads, d)))
        return padded.unflatten(0, (blocks, BLOCK))[:, every - 1 :: every].transpose(1, 2).contiguous()

    near = attend_masked(q, pool(k, 1), pool(v, 1), tiles, scale, selection_mask(tiles, 1, 30, None))
    chosen = select(q, weights, pool(k, every), tiles, BUDGET)
    far = attend_masked(
        q, pool(k, every), pool(v, every), tiles, scale, selection_mask(tiles, every, None, chosen.rows)
    )
    outs, lses = zip(near, far)
    out = merge_attention(outs, (*lses, sink.expand(length, heads, repeat)))
    mix = torch.randn_like(out)
    scores = chosen.scores.masked_fill(chosen.rows < 0, 0)
    ours = (out * mix).sum() + scores.square().sum()
    got = torch.autograd.grad(ours, (q, k, v, sink, weights))

    at, last = torch.arange(length).unsqueeze(1), torch.arange(length // every) * every + every - 1
    entry = k[every - 1 :: every]
    index = (torch.einsum("thrd,shd->thrs", q, entry).relu() * weights.unsqueeze(-1)).sum((1, 2))
    seen = torch.zeros(length, len(last), dtype=torch.bool)
    for t, rows in enumerate(chosen.rows):
        seen[t, rows[rows >= 0]] = True
    assert not (seen & (last > at)).any()
    window = (at - torch.arange(length) < 30) & (torch.arange(length) <= at)
    logits = [torch.einsum("thrd,shd->thrs", q, key) * scale for key in (k, entry)]
    logits = [x.masked_fill(~y[:, None, None], -torch.inf) for x, y in zip(logits, (window, seen))]
    p = torch.cat((*logits, sink.expand(length, heads, repeat).unsqueeze(-1)), -1).softmax(-1)
    expected = torch.einsum("thrs,shd->thrd", p[..., :-1], torch.cat((v, v[every - 1 :: every])))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    theirs = (expected * mix).sum() + index.masked_fill(~seen, 0).square().sum()
    for one, other in zip(got, torch.autograd.grad(theirs, (q, k, v, sink, weights))):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("table", [[[2, 4, 1], [0, 3, 3]], [[0, 2, 4], [1, 3, 3]], [[7, 9, 30], [20, 3, 3]]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_a_step_are_those_of_plain_attention_wherever_its_blocks_lie(
    table: list[list[int]], dtype: torch.dtype
) -> None:
    """One query for each of two sequences: blocks out of order in a slice of the pool, in order, and gathered."""
    generator = torch.Generator().manual_seed(0)
    lengths, heads, repeat, d, window = (140, 70), 2, 3, 16, 75
    q, k, v = (
        torch.randn(*shape, generator=generator).to(dtype).float().requires_grad_()
        for shape in ((2, heads, repeat, d), (32, heads, BLOCK, d), (32, heads, BLOCK, d))
    )
    tiles = build_tiles(np.array(lengths) - 1, np.ones(2, np.int64), np.array(table), 1)
    assert (tiles.span is None) == (table[0][2] == 30) and (tiles.back is None) == (table[0][0] != 2)
    mask = selection_mask(tiles, 1, window, None)
    out, lse = attend_masked(q.to(dtype), k.to(dtype), v.to(dtype), tiles, d**-0.5, mask)
    assert out.dtype == dtype and lse.dtype == torch.float32
    pulls = torch.randn(out.shape, generator=generator), torch.randn(lse.shape, generator=generator)
    got = torch.autograd.grad((out * pulls[0]).sum() + (lse * pulls[1]).sum(), (q, k, v))
    loss = torch.zeros(())
    for i, length in enumerate(lengths):
        keys, values = (t[table[i]].transpose(1, 2).flatten(0, 1)[max(0, length - window) : length] for t in (k, v))
        scores = torch.einsum("hrd,shd->hrs", q[i], keys) * d**-0.5
        plain_out = torch.einsum("hrs,shd->hrd", scores.softmax(-1), values)
        loss = loss + (plain_out * pulls[0][i]).sum() + (scores.logsumexp(-1) * pulls[1][i]).sum()
    most = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(got, torch.autograd.grad(loss, (q, k, v))):
        assert (one - other).abs().max() < most * other.abs().max()


def test_merged_queries_have_bits_of_their_own() -> None:
    """However many there are: no exponential of a last element is another."""
    generator = torch.Generator().manual_seed(0)
    outs = [torch.randn(100, 3, 8, generator=generator) for _ in range(3)]
    lses = [torch.randn(100, 3, generator=generator) * 3 for _ in range(4)]
    whole = merge_attention(outs, lses)
    for count in range(1, 100):
        assert torch.equal(merge_attention([o[:count] for o in outs], [one[:count] for one in lses]), whole[:count])


@pytest.mark.parametrize(("every", "window"), [(1, None), (1, 9), (4, None), (4, 70)])
def test_inference_and_training_see_the_same_rows(every: int, window: int | None) -> None:
    """Inference gathers the selected rows, training masks the others; the backend passes both the window."""
    attention, generator = PagedAttention(ENOUGH), torch.Generator().manual_seed(4)
    loc, lens = np.array([0, 1, 2, 42]), np.array([150, 3, 100])
    table = np.array([[4, 1, 2], [5, 0, 0], [3, 6, 0]])
    plan = attention.plan(AttentionMetadata(loc, lens, table, np.zeros(42, np.int64)), torch.device("cpu"))
    pool = torch.randn(7, 2, BLOCK // every, 12, generator=generator)
    q = torch.randn(42, 2, 3, 12, generator=generator)
    rows = attention.select(q, q[..., 0], pool, plan, 6).rows
    with torch.enable_grad():
        masked = attention.attend_with_lse(q, pool, pool, plan, 0.5, 8, selected=rows, window=window)
    with torch.no_grad():
        gathered = attention.attend_with_lse(q, pool, pool, plan, 0.5, 8, selected=rows, window=window)
    for one, other in zip(gathered, masked):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_sequences_of_different_lengths_select_and_lose_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is computed in several slices. Each has its own selected rows, and as many as its longest sequence can have."""
    monkeypatch.setattr("rorqual.ops.backends.attention.PAIRS", 2)
    attention, generator = PagedAttention(ENOUGH), torch.Generator().manual_seed(8)
    counts, lens = np.array([1, 1, 70, 40]), np.array([5, 130, 200, 240])
    table = np.array([[12, 0, 0, 0], [1, 2, 3, 0], [4, 5, 6, 7], [8, 9, 10, 11]])
    pool, index = (torch.randn(13, 1, BLOCK, 12, generator=generator) for _ in range(2))
    q, iq = (2 * torch.randn(112, 1, 3, 12, generator=generator) for _ in range(2))
    weights = torch.rand(112, 1, 3, generator=generator)

    @torch.no_grad()
    def found(which: list[int], tokens: slice) -> tuple[Tensor, ...]:
        loc = np.append(0, np.cumsum(counts[which]))
        metadata = AttentionMetadata(loc, lens[which], table[which], np.zeros(loc[-1], np.int64))
        plan = attention.plan(metadata, torch.device("cpu"))
        selection = attention.select(iq[tokens], weights[tokens], index, plan, 150)
        assert torch.equal(selection.rows >= 0, selection.scores > -torch.inf)
        loss = attention.index_kl(q[tokens], pool, 0.3, iq[tokens], weights[tokens], index, plan, selection.rows)
        return loss, (selection.rows >= 0).sum(1), (selection.keep_top_p(0.5).rows >= 0).sum(1)

    whole = found([0, 1, 2, 3], slice(0, 112))
    for which, tokens in ((0, slice(0, 1)), (1, slice(1, 2)), (2, slice(2, 72)), (3, slice(72, 112))):
        for one, other in zip(found([which], tokens), whole, strict=True):
            assert torch.equal(one, other[tokens])
    assert whole[1].tolist() == [5, 130, *(min(150, t + 1) for t in range(130, 200)), *[150] * 40]


def test_rows_that_a_short_sequence_lacks_have_no_score() -> None:
    attention, generator = PagedAttention(ENOUGH), torch.Generator().manual_seed(9)
    metadata = AttentionMetadata(
        np.array([0, 1, 41]), np.array([130, 40]), np.array([[1, 2, 3], [4, 0, 0]]), np.zeros(41, np.int64)
    )
    plan = attention.plan(metadata, torch.device("cpu"))
    q, keys = torch.randn(41, 1, 3, 12, generator=generator), torch.randn(5, 1, BLOCK, 12, generator=generator)
    found = attention.select(q, torch.rand(41, 1, 3, generator=generator), keys, plan, 100)
    assert found.rows.shape == (41, 100) and torch.equal(found.rows >= 0, found.scores > -torch.inf)
    assert (found.rows >= 0).sum(1).tolist() == [100, *range(1, 41)]
