"""Random steps over a paged cache: whatever a step holds, each token attends to its own sequence as a plain sum says, and every block keeps
what was written there."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor
from transposed import Permuted

from rorqual.ops.backends.attention import PAD, AttentionMetadata, AttentionPlan, PagedAttention
from rorqual.ops.paged import BLOCK
from rorqual.ops.row_limits import ENOUGH

HEADS, REPEAT, WIDTH, SHORT, EVERY = 2, 3, 16, 12, 4
ATTENTION = {"loose": PagedAttention(), "enough": PagedAttention(ENOUGH), "permuted": Permuted()}
both = pytest.mark.parametrize("attention", ATTENTION.values(), ids=ATTENTION)
CPU = torch.device("cpu")


@dataclass
class Known:
    """A sequence: its blocks, and keys and values [tokens, heads, width] of all its tokens so far."""

    blocks: list[int]
    k: Tensor = field(default_factory=lambda: torch.zeros(0, HEADS, WIDTH))
    v: Tensor = field(default_factory=lambda: torch.zeros(0, HEADS, WIDTH))


class World:
    def __init__(self, seed: int, attention: PagedAttention) -> None:
        self.rng, self.generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        self.attention = attention
        self.free = (1 + self.rng.permutation(60)).tolist()
        self.known: list[Known] = []
        self.k, self.v, self.entries = (
            torch.zeros(attention.shape(61, HEADS, BLOCK // every, WIDTH)) for every in (1, 1, EVERY)
        )
        self.plan: AttentionPlan | None = None

    def some(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def step(self, *, same: bool) -> None:
        """`same`: the sequences that decode are those of the last step, in their order, and nothing else happens."""
        rng = self.rng
        if not same:
            for one in [one for one in self.known if rng.random() < 0.15]:
                self.known.remove(one)
                self.free += one.blocks
                rng.shuffle(self.free)
            while len(self.known) < 5 and len(self.free) > 24:
                self.known.append(Known([]))
            if rng.random() < 0.5:
                rng.shuffle(self.known)  # type: ignore[arg-type]
        decoding = [one for one in self.known if len(one.k)]
        chunks = [] if same else [(one, int(rng.integers(1, 150))) for one in self.known if not len(one.k)]
        chunks += [] if same else [(decoding.pop(), int(rng.integers(1, 9))) for _ in decoding[3:]]
        self.run([*((one, 1) for one in decoding), *chunks], spare=int(rng.integers(0, 4)))

    def run(self, given: list[tuple[Known, int]], spare: int) -> None:
        attention, counts = self.attention, [count for _, count in given]
        if not given:
            return
        tokens, new = sum(counts), []
        for one, count in given:
            while len(one.blocks) * BLOCK < len(one.k) + count + BLOCK * int(self.rng.integers(0, 2)):
                one.blocks.append(self.free.pop())
            new.append((self.some(count, HEADS, WIDTH), self.some(count, HEADS, WIDTH)))
        lens = np.array([len(one.k) + count for one, count in given])
        table = self.rng.integers(1, 61, (len(given), int((lens.max() - 1) // BLOCK) + 1 + self.rng.integers(0, 2)))
        slots = np.full(tokens + spare, PAD)
        start = 0
        for row, (one, count) in enumerate(given):
            laid = min(len(one.blocks), table.shape[1])
            table[row, :laid] = one.blocks[:laid]
            at = np.arange(len(one.k), len(one.k) + count)
            slots[start : start + count] = table[row, at // BLOCK] * BLOCK + at % BLOCK
            start += count
        metadata = AttentionMetadata(np.append(0, np.cumsum(counts)), lens, table, slots)
        fill = self.some(spare, HEADS, WIDTH) + 100  # what must not be kept anywhere
        k, v = (torch.cat([*(pair[which] for pair in new), fill]) for which in (0, 1))
        q = self.some(tokens + spare, HEADS, REPEAT, WIDTH) * 2
        fresh = attention.plan(metadata, CPU)
        self.plan = plan = attention.plan(metadata, CPU, self.plan)
        for pool, rows in ((self.k, k), (self.v, v)):
            attention.write(pool, rows, plan)
        groups, _ = attention.groups(self.k, plan, EVERY)
        attention.write(self.entries, groups.mean(1), plan)
        out = attention.attend(q, self.k, self.v, plan, WIDTH**-0.5, SHORT)
        assert torch.equal(out, attention.attend(q, self.k, self.v, fresh, WIDTH**-0.5, SHORT))
        windowed = [attention.attend_with_lse(q, self.k, self.v, p, 0.3, SHORT, window=70)[0] for p in (plan, fresh)]
        assert torch.equal(*windowed)
        same, whole = attention.attend_with_lse(q, self.k, self.k, plan, 0.3, SHORT)
        start = 0
        for (one, count), (k_, v_) in zip(given, new):
            one.k, one.v = torch.cat((one.k, k_)), torch.cat((one.v, v_))
            rows = slice(start, start + count)
            check(out[rows], plain(q[rows], one.k, one.v[..., :SHORT], WIDTH**-0.5))
            check(windowed[0][rows], plain(q[rows], one.k, one.v[..., :SHORT], 0.3, window=70))
            check(same[rows], plain(q[rows], one.k, one.k[..., :SHORT], 0.3))
            check(whole[rows], lse(q[rows], one.k, 0.3))
            start += count
        if spare:
            assert torch.equal(out[tokens:], out[:1].expand(spare, -1, -1, -1))

    def check_blocks(self) -> None:
        for one in self.known:
            length = len(one.k)
            index = torch.tensor(one.blocks, dtype=torch.long)
            for pool, rows in ((self.k, one.k), (self.v, one.v)):
                found = self.attention.read(pool, index).transpose(1, 2).flatten(0, 1)
                assert torch.equal(found[:length], rows)
            full = length // EVERY
            entries = one.k[: full * EVERY].unflatten(0, (full, EVERY)).mean(1)
            found = self.attention.read(self.entries, index).transpose(1, 2).flatten(0, 1)
            torch.testing.assert_close(found[:full], entries)


def shown(q: Tensor, k: Tensor, scale: float, window: int | None) -> Tensor:
    """Scores [queries, heads, repeat, keys] in fp64, -inf where a query of the last positions does not see a key."""
    scores = torch.einsum("qhrd,khd->qhrk", q.double(), k.double()) * scale
    behind = torch.arange(len(k) - len(q), len(k)).unsqueeze(1) - torch.arange(len(k))
    unseen = (behind < 0) | (behind >= (window or len(k)))
    return scores.masked_fill(unseen.view(len(q), 1, 1, -1), -torch.inf)


def plain(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None = None) -> Tensor:
    return torch.einsum("qhrk,khd->qhrd", shown(q, k, scale, window).softmax(-1), v.double())


def lse(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return shown(q, k, scale, None).logsumexp(-1)


def check(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


@both
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_each_token_attends_to_its_own_sequence(attention: PagedAttention, seed: int) -> None:
    world = World(seed, attention)
    for _ in range(12):
        world.step(same=False)
        for _ in range(int(world.rng.integers(0, 5))):
            world.step(same=True)
        world.check_blocks()


@both
@torch.no_grad()
def test_a_plan_of_the_last_step_is_not_taken_for_other_sequences(attention: PagedAttention) -> None:
    """Two sequences that decode from equal positions change places, and then another stands where one was, or the same a few tokens back."""
    world = World(3, attention)
    world.known = [Known([]) for _ in range(3)]
    a, b, c = world.known
    world.run([(a, 70), (b, 70), (c, 72)], spare=0)
    for given in ([a, b], [b, a], [a, b], [a, c], [a, b, c], [a, b]):
        world.run([(one, 1) for one in given], spare=0)
    a.k, a.v = a.k[:-3], a.v[:-3]
    world.run([(a, 1), (b, 1)], spare=0)
    for _ in range(60):  # over the end of a block, at which the next one may stand in the table already
        world.run([(a, 1), (b, 1)], spare=0)
    world.check_blocks()
