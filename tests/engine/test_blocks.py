"""Blocks of the cache against an oracle that is plain dictionaries and looks at everything."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import takewhile

import pytest
from consistency import check_pool
from hypothesis import given, settings
from hypothesis import strategies as st

from rorqual.engine.kv_cache.block_pool import BlockPool


@dataclass
class Oracle:
    """What the pool must do, said slowly: per block who refers to it, its name, its contents and when it was last put down."""

    size: int
    references: dict[int, int] = field(default_factory=dict)
    names: dict[int, bytes] = field(default_factory=dict)
    put_down: dict[int, int] = field(default_factory=dict)
    clock: int = 0

    def cached(self) -> list[int]:
        """Least recently used first."""
        return sorted((block for block in self.names if not self.references.get(block)), key=self.put_down.__getitem__)

    def used(self) -> int:
        return sum(count > 0 for count in self.references.values())

    def free(self) -> int:
        return self.size - self.used() - len(self.cached())

    def find(self, key: bytes) -> int | None:
        return next((block for block, name in self.names.items() if name == key), None)

    def take(self, block: int) -> None:
        self.references[block] = self.references.get(block, 0) + 1

    def release(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self.references[block] -= 1
            self.clock += 1
            self.put_down[block] = self.clock


class Play:
    """Sequences that come, match, grow, are shared, are cancelled, on a pool and on its oracle at once."""

    def __init__(self, seed: int, size: int) -> None:
        self.random = random.Random(seed)
        self.pool = BlockPool(size)
        self.oracle = Oracle(size)
        self.live: list[tuple[list[int], list[bytes]]] = []
        self.counts: Counter[str] = Counter()

    def keys(self) -> list[bytes]:
        """The keys of a prompt. Prompts often begin alike."""
        letters = self.random.choices("aaaabb", k=self.random.randint(1, 6))
        return ["".join(letters[: end + 1]).encode() for end in range(len(letters))]

    def step(self) -> None:
        pick = self.random.random()
        if pick < 0.35:
            self.insert()
        elif pick < 0.45:
            self.lock()
        elif pick < 0.65:
            self.fill()
        elif pick < 0.9996:
            self.cancel()
        else:
            self.pool.drop_keys()
            self.oracle.names.clear()
        self.agree()

    def insert(self) -> None:
        keys = self.keys()
        expected = list(takewhile(lambda block: block is not None, map(self.oracle.find, keys)))
        hits = [self.pool.share_block(key) for key in keys[: len(expected)]]
        assert hits == expected and (len(expected) == len(keys) or self.pool.share_block(keys[len(expected)]) is None)
        for block in expected:
            self.oracle.take(block)
        self.counts["hits"] += len(hits)
        fresh = self.allocate(len(keys) - len(hits) + self.random.randint(0, 3))
        if fresh is None:
            self.put_back(expected)
            return
        self.live.append((expected + fresh, keys))
        self.counts["inserts"] += 1

    def fill(self) -> None:
        """A sequence writes and names what it has a key for; meanwhile another with the same prompt may have been quicker."""
        if self.live:
            for block, key in zip(*self.random.choice(self.live), strict=False):
                if block not in self.oracle.names:
                    assert self.pool.register_key(block, key) == (self.oracle.find(key) is None)
                    if self.oracle.find(key) is None:
                        self.oracle.names[block] = key

    def allocate(self, count: int) -> list[int] | None:
        before = self.oracle.cached()
        short = max(0, count - self.oracle.free())
        fresh = self.pool.allocate(count)
        if short > len(before):
            assert fresh is None
            return None
        assert fresh is not None and len(set(fresh)) == len(fresh) == count
        for block in before[:short]:
            del self.oracle.names[block]
        self.counts["evictions"] += short
        for block in fresh:
            assert not self.oracle.references.get(block), "a block was given to two"
            assert block not in self.oracle.names
            self.oracle.take(block)
        return fresh

    def lock(self) -> None:
        if self.live:
            blocks, keys = self.random.choice(self.live)
            part = blocks[: self.random.randint(0, len(blocks))]
            for block in part:
                self.pool.add_reference(block)
                self.oracle.take(block)
            self.live.append((part, keys))
            self.counts["locks"] += 1

    def cancel(self) -> None:
        if self.live:
            blocks, _ = self.live.pop(self.random.randrange(len(self.live)))
            self.put_back(blocks)
            self.counts["cancellations"] += 1

    def put_back(self, blocks: list[int]) -> None:
        self.pool.release(blocks)
        self.oracle.release(blocks)

    def agree(self) -> None:
        check_pool(self.pool, [blocks for blocks, _ in self.live])
        oracle = self.oracle
        counts = (self.pool.n_free_blocks, self.pool.n_cached_blocks, self.pool.n_used_blocks)
        assert counts == (oracle.free(), len(oracle.cached()), oracle.used())
        assert self.pool._known == {key: block for block, key in oracle.names.items()}, "what was evicted lost its name"


def play(seed: int, size: int, steps: int) -> Counter[str]:
    game = Play(seed, size)
    for _ in range(steps):
        game.step()
    for blocks, _ in game.live:
        game.put_back(blocks)
    check_pool(game.pool, [])
    assert game.pool.n_used_blocks == 0
    game.pool.drop_keys()
    assert game.pool.n_free_blocks == size
    return game.counts


@pytest.mark.parametrize("seed", range(4))
def test_a_pool_does_what_a_dictionary_says(seed: int) -> None:
    counts = play(seed, size=(5, 17, 40, 64)[seed], steps=2_000)
    assert min(counts[name] for name in ("hits", "inserts", "evictions", "locks", "cancellations")) > 50, counts


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_any_play_on_a_small_pool_agrees(seed: int, size: int) -> None:
    play(seed, size, steps=60)


def test_misuse_is_refused_at_once_and_changes_nothing() -> None:
    pool = BlockPool(3)
    held = pool.allocate(1) or []
    free = next(block for block in range(3) if block not in held)
    pool.register_key(held[0], b"name")
    for misuse, match in (
        (lambda: pool.release([free]), "no reference to release"),
        (lambda: pool.add_reference(free), "is free"),
        (lambda: pool.register_key(free, b"k"), "no references and so"),
        (lambda: pool.register_key(held[0], b"other"), "another key"),
    ):
        with pytest.raises(RuntimeError, match=match):
            misuse()
        check_pool(pool, [held])
    assert pool.register_key(held[0], b"name"), "the same name again is no harm"
