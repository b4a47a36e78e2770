"""Ownership of the KV-cache blocks: reference counts, hash keys and eviction. The block pool uses no tensors.

A KV-cache block is in one of three states. A *used* block is referenced by at least one sequence. A *cached* block has no
references but still has a hash key: a later prompt with the same prefix can reuse the cached block. A *free* block has neither
references nor a hash key.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from heapq import heappop, heappush


class BlockPool:
    """A pool of `n_blocks` KV-cache blocks with ids 0 to `n_blocks` - 1.

    An operation of the pool that adds or removes a free block takes logarithmic time. Operations of the pool that leave the
    free blocks unchanged take constant time per block.

    Raises RuntimeError on misuse: a double release, or a key for a block without references. Undetected misuse of the pool
    would give the keys and values of one sequence to another sequence.
    """

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        self.evictions = 0
        self._references = [0] * n_blocks
        self._keys: list[bytes | None] = [None] * n_blocks
        self._known: dict[bytes, int] = {}
        # A heap, so that blocks with low ids are used first. Low ids keep the used blocks close together in the memory
        # that attention reads.
        self._free = list(range(n_blocks))
        # The least recently used block comes first. This is an OrderedDict, because a plain dict walks over deleted
        # entries to find its first entry.
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def n_free_blocks(self) -> int:
        """Number of free KV-cache blocks in the pool."""
        return len(self._free)

    @property
    def n_cached_blocks(self) -> int:
        """Number of cached KV-cache blocks in the pool."""
        return len(self._cached)

    @property
    def n_used_blocks(self) -> int:
        """Number of used KV-cache blocks in the pool."""
        return self.n_blocks - self.n_available_blocks

    @property
    def n_available_blocks(self) -> int:
        """Number of blocks that `allocate` can return: all free and all cached blocks."""
        return len(self._free) + len(self._cached)

    def allocate(self, count: int) -> list[int] | None:
        """Return `count` blocks, evicting cached blocks if necessary. Each allocated block has one reference and no hash key.

        If fewer than `count` blocks are available, `allocate` returns None and changes nothing.
        """
        if count > len(self._free) + len(self._cached):
            return None
        while len(self._free) < count:
            block, _ = self._cached.popitem(last=False)
            self._remove_key(block)
            heappush(self._free, block)
            self.evictions += 1
        ids = [heappop(self._free) for _ in range(count)]
        for block in ids:
            self._references[block] = 1
        return ids

    def share_block(self, key: bytes) -> int | None:
        """Add a reference to the block with the hash key `key`, and return the block's id. Return None if no block has this
        hash key."""
        block = self._known.get(key)
        if block is not None:
            self.add_reference(block)
        return block

    def add_reference(self, block: int) -> None:
        """Add a reference to a used or cached block."""
        if self._references[block] == 0:
            if block not in self._cached:
                raise RuntimeError(f"block {block} is free: it has no contents to share")
            del self._cached[block]
        self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Remove one reference from each block of a sequence. `blocks` lists the blocks in the order of the sequence.

        A block whose last reference is removed becomes cached if the block has a hash key, else free. The last block of the
        sequence will be evicted first, because a cached block is useless without the blocks before it.
        """
        for block in reversed(blocks):
            remaining = self._references[block] - 1
            if remaining < 0:
                raise RuntimeError(f"block {block} has no reference to release")
            self._references[block] = remaining
            if remaining == 0:
                if self._keys[block] is None:
                    heappush(self._free, block)
                else:
                    self._cached[block] = None

    def register_key(self, block: int, key: bytes) -> bool:
        """Give the hash key `key` to a full block that the caller references. Other sequences can share a block with a hash key
        (`share_block`), so the block must not be written again.

        If another block already has the hash key, `register_key` returns False. `block` then gets no hash key, so `block`
        becomes free when the last reference to `block` is released.
        """
        if self._references[block] == 0:
            raise RuntimeError(f"block {block} has no references and so cannot get a key")
        holder = self._known.get(key)
        if holder is not None:
            return holder == block
        if self._keys[block] is not None:
            raise RuntimeError(f"block {block} already has another key")
        self._known[key] = block
        self._keys[block] = key
        return True

    def drop_keys(self) -> None:
        """Remove the hash keys of all blocks, because the cached keys and values are out of date.

        `drop_keys` makes cached blocks free. Used blocks lose their hash keys and stay used.
        """
        for block in list(self._known.values()):
            self._remove_key(block)
            if self._references[block] == 0:
                del self._cached[block]
                heappush(self._free, block)

    def _remove_key(self, block: int) -> None:
        key = self._keys[block]
        assert key is not None
        del self._known[key]
        self._keys[block] = None
