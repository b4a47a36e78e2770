"""Attention over blocks: what plain attention says, and each query's bits its own, whoever is beside it and wherever its blocks lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rorqual.ops.attention import attend as plain
from rorqual.ops.paged import BLOCK, QUERIES, attend, tiles_of

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHAPES = [(1, 3, 40, 24), (2, 3, 24, 24), (3, 1, 16, 16), (1, 6, 64, 48), (4, 5, 20, 12)]
"""heads, queries of a head, d, d_v; with one head the values are the first columns of the keys. Widths are multiples of four: in others
the address of a row decides how MKL rounds it (docs/engine.md)."""


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
        tiles = tiles_of(np.array(first), np.array(count), tables, queries)
        q = torch.cat([self.q[i][f : f + c] for i, f, c in zip(who, first, count)])
        read: Tensor | int = self.d_v if self.heads == 1 else values
        with torch.no_grad():
            return list(attend(q, keys, read, tiles, self.d**-0.5).split(count))

    def expected(self, i: int) -> Tensor:
        """Plain attention in fp64: [tokens, heads, repeat, d_v]."""
        q, k, v = self.q[i].double(), self.k[i].double(), self.v[i].double()
        mask = torch.ones(len(q), len(q), dtype=torch.bool).tril()
        flat = q.permute(1, 2, 0, 3).flatten(0, 1)
        k, v = (t.transpose(0, 1).repeat_interleave(self.repeat, 0) for t in (k, v))
        scores = (flat @ k.transpose(1, 2) * self.d**-0.5).masked_fill(~mask, -torch.inf)
        return (scores.softmax(-1) @ v).unflatten(0, (self.heads, self.repeat)).permute(2, 0, 1, 3)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_attention(shape: tuple[int, int, int, int], dtype: str) -> None:
    case = Case(0, shape, TYPES[dtype], [1, 63, 64, 65, 200, 7])
    for queries in (QUERIES, 1):
        for i, got in enumerate(case.attended(list(range(6)), [0] * 6, case.lengths, QUERIES)):
            torch.testing.assert_close(got.double(), case.expected(i), rtol=0, atol=2e-5 if dtype == "fp32" else 8e-2)
        last = [n - 1 for n in case.lengths]
        for i, got in enumerate(case.attended(list(range(6)), last, [1] * 6, queries)):
            expected = case.expected(i)[-1:]
            torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-5 if dtype == "fp32" else 8e-2)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_query_has_bits_of_its_own(shape: tuple[int, int, int, int], dtype: str) -> None:
    """Alone, among others, in any order, in any chunk, decoded or fed."""
    rng = np.random.default_rng(1)
    for seed in range(4):
        lengths = rng.integers(1, 400, 9).tolist()
        case = Case(seed, shape, TYPES[dtype], lengths)
        alone = [case.attended([i], [0], [n], QUERIES)[0] for i, n in enumerate(lengths)]
        for _ in range(4):
            who = rng.permutation(9)[: rng.integers(2, 9)].tolist()
            first = [int(rng.integers(0, lengths[i])) for i in who]
            count = [int(rng.integers(1, lengths[i] - f + 1)) for i, f in zip(who, first)]
            for i, f, c, got in zip(who, first, count, case.attended(who, first, count, QUERIES)):
                assert torch.equal(got, alone[i][f : f + c])
            ones = [1] * len(who)
            for i, f, got in zip(who, first, case.attended(who, first, ones, 1)):
                assert torch.equal(got, alone[i][f : f + 1])


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


def test_gradients_are_those_of_plain_attention() -> None:
    torch.manual_seed(0)
    length, heads, repeat, d = 150, 2, 2, 12
    q, k, v = (torch.randn(length, heads, *more, requires_grad=True) for more in ((repeat, d), (d,), (d,)))
    blocks = -(-length // BLOCK)
    tiles = tiles_of(np.array([0]), np.array([length]), np.arange(blocks)[None], QUERIES)

    def pool(x: Tensor) -> Tensor:
        padded = torch.cat((x, x.new_zeros(blocks * BLOCK - length, heads, d)))
        return padded.unflatten(0, (blocks, BLOCK)).transpose(1, 2).contiguous()

    out = attend(q, pool(k), pool(v), tiles, d**-0.5)
    weights = torch.randn_like(out)
    got = torch.autograd.grad((out * weights).sum(), (q, k, v))
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    flat = q.permute(1, 2, 0, 3).flatten(0, 1)
    wide = [t.transpose(0, 1).repeat_interleave(repeat, 0) for t in (k, v)]
    theirs = plain(flat[None], wide[0][None], wide[1][None], mask, d**-0.5)[0].unflatten(0, (heads, repeat))
    expected = torch.autograd.grad((theirs.permute(2, 0, 1, 3) * weights).sum(), (q, k, v))
    for one, other in zip(got, expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
