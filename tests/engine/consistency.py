"""Whether the slots and blocks of a scheduler agree with the sequences that hold them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rorqual.engine.kv_cache.block_pool import BlockPool
from rorqual.engine.scheduler import Scheduler


def check_pool(pool: BlockPool, held: Iterable[Sequence[int]]) -> None:
    """Each block is used, cached or free, and its references are the live sequences that hold it."""
    counts = Counter(block for blocks in held for block in blocks)
    assert pool._references == [counts[block] for block in range(pool.n_blocks)], "references of live sequences"
    used, cached = set(counts), set(pool._cached)
    assert sorted([*used, *cached, *pool._free]) == list(range(pool.n_blocks)), "each block is in one state"
    assert pool._known == {key: block for block, key in enumerate(pool._keys) if key is not None}
    assert cached <= set(pool._known.values()) <= used | cached and pool.n_used_blocks == len(used)


def check_scheduler(scheduler: Scheduler) -> None:
    """Each slot is free or has one sequence, and the blocks are those of the sequences with a slot."""
    occupied = [sequence.slot for sequence in scheduler._sequences_with_slot()]
    assert sorted([*occupied, *scheduler._free]) == list(range(scheduler.slots)), "each slot is in one state"
    live = (*scheduler.running, *scheduler.prefilling)
    check_pool(scheduler.kv_cache.pool, [[0], *(sequence.blocks for sequence in live)])
