"""The KV-cache manager: assign blocks to sequences and maintain the prefix cache. The manager uses no tensors.

A KV-cache block gets a hash key (`block_hash.py`) once all positions of the block are computed. The hash key of a block covers
the tenant, the weights, all tokens up to the end of the block, and embeddings that a request sets for these tokens (`Embeds`).
Sequences with a common prefix share the blocks of this prefix. A block that no sequence uses any more stays cached until the
block is evicted. With a disk cache, a block that gets a hash key is also written to disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rorqual.engine.kv_cache.block_hash import hash_blocks, max_reusable_blocks, root_key
from rorqual.engine.kv_cache.block_pool import BlockPool
from rorqual.engine.kv_cache.disk import DiskStore
from rorqual.engine.sequence import Sequence
from rorqual.ops.paged import BLOCK


@dataclass
class KVCacheManager:
    """Assigns the blocks of one KV cache to sequences. Block 0 is reserved for padding tokens."""

    n_blocks: int
    secret: bytes
    fingerprint: bytes
    read: Callable[[int], bytes]
    """Callback that returns the contents of a KV-cache block (`PagedCache.read`)."""
    write: Callable[[int, bytes], bool]
    """Callback that restores the contents of a KV-cache block (`PagedCache.write`)."""
    store: DiskStore | None = None
    """The on-disk prefix cache, or None if there is no on-disk prefix cache."""
    clear: Callable[[list[int]], None] | None = None
    """Callback that fills newly allocated blocks with zeros before a sequence gets the blocks. If `clear` is None, newly
    allocated blocks keep their contents."""
    pool: BlockPool = field(init=False)
    roots: dict[tuple[str, str], bytes] = field(default_factory=dict)
    hit_tokens: int = 0
    miss_tokens: int = 0
    restored: int = 0

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Drop all cached blocks in memory. Cached blocks on disk are kept."""
        self.pool = BlockPool(self.n_blocks)
        self.pool.allocate(1)

    @property
    def n_usable_blocks(self) -> int:
        """Number of KV-cache blocks that sequences can use."""
        return self.n_blocks - 1

    def invalidate_blocks(self, fingerprint: bytes) -> None:
        """Invalidate all cached blocks, in memory and on disk, because the weights have changed."""
        self.fingerprint = fingerprint
        self.roots.clear()
        self.pool.drop_keys()

    def match(self, owner: Sequence, most: int | None = None) -> int:
        """Assign the blocks of the longest cached prefix to `owner`, and return the number of tokens in these blocks.

        `owner` must have no blocks yet. The longest cached prefix has at most `most` tokens and is shorter than the sequence,
        so that at least one token is computed.
        """
        if not owner.reuse:
            return 0
        usable = len(owner.tokens) if most is None else min(most, len(owner.tokens))
        keys = self._block_keys(owner, len(owner.tokens) // BLOCK)[
            : min(usable // BLOCK, max_reusable_blocks(len(owner.tokens), BLOCK))
        ]
        owner.blocks = []
        for key in keys:
            block = self.pool.share_block(key)
            if block is None:
                block = self._restore_from_disk(owner, key)
            if block is None:
                break
            owner.blocks.append(block)
        owner.num_cached_blocks = len(owner.blocks)
        return owner.num_cached_blocks * BLOCK

    def _restore_from_disk(self, owner: Sequence, key: bytes) -> int | None:
        if self.store is None or not self.store.has(key):
            return None
        allocated = self.pool.allocate(1)
        if allocated is None:
            return None
        contents = self.store.get(key)
        if contents is None or not self.write(allocated[0], contents):
            self.pool.release(allocated)
            return None
        self.pool.register_key(allocated[0], key)
        self.restored += 1
        return allocated[0]

    def allocate_up_to(self, owner: Sequence, length: int) -> bool:
        """Allocate blocks until `owner` has enough blocks for `length` positions.

        If too few blocks are available, `allocate_up_to` returns False and changes nothing.
        """
        missing = -(-length // BLOCK) - len(owner.blocks)
        if missing <= 0:
            return True
        allocated = self.pool.allocate(missing)
        if allocated is None:
            return False
        if self.clear is not None:
            self.clear(allocated)
        owner.blocks += allocated
        return True

    def cache_blocks(self, owner: Sequence, length: int) -> None:
        """Add the full blocks within the first `length` positions of `owner` to the prefix cache. The keys and values of the
        first `length` positions must already be computed."""
        full = length // BLOCK
        if not owner.reuse or full <= owner.num_cached_blocks:
            return
        keys = self._block_keys(owner, full)
        for index in range(owner.num_cached_blocks, full):
            fresh = self.pool.register_key(owner.blocks[index], keys[index])
            if fresh and self.store is not None and not self.store.has(keys[index]):
                self.store.put(keys[index], self.read(owner.blocks[index]))
        owner.num_cached_blocks = full

    def release(self, owner: Sequence) -> None:
        """Release the blocks of `owner`."""
        self.pool.release(owner.blocks)
        owner.blocks, owner.num_cached_blocks = [], 0

    def fork_blocks(self, owner: Sequence, other: Sequence, length: int) -> list[tuple[int, int]] | None:
        """Give `other` the first `length` positions of `owner`. Full blocks are shared by `owner` and `other`. If the last
        shared block is only partly filled, `other` gets a new block, and the caller must copy the contents of the partial block
        into the new block.

        Returns [(target block, source block)] for the caller's copy, [] if no block is partial, or None if no block is
        available.
        """
        full, partial = divmod(length, BLOCK)
        new_blocks = self.pool.allocate(1) if partial else []
        if new_blocks is None:
            return None
        for block in owner.blocks[:full]:
            self.pool.add_reference(block)
        other.blocks, other.num_cached_blocks = owner.blocks[:full] + new_blocks, min(owner.num_cached_blocks, full)
        other.keys = list(owner.keys)
        return [(new_blocks[0], owner.blocks[full])] if partial else []

    def _block_keys(self, owner: Sequence, blocks: int) -> list[bytes]:
        """Return the keys of the first `blocks` blocks of `owner`. Block keys that `owner` already has are not recomputed."""
        n_known = len(owner.keys)
        if n_known < blocks:
            root = owner.tenant, owner.adapter
            weights = self.fingerprint + owner.adapter.encode()
            if root not in self.roots:
                self.roots[root] = root_key(self.secret, weights, owner.tenant, BLOCK)
            parent = owner.keys[-1] if n_known else self.roots[root]
            tokens, embeds = owner.tokens[n_known * BLOCK : blocks * BLOCK], owner.embeds

            def extra_keys(number: int) -> tuple[bytes, ...]:
                start = (n_known + number) * BLOCK
                return () if embeds is None else embeds.extra_keys(start, start + BLOCK)

            owner.keys += hash_blocks(self.secret, parent, tokens, BLOCK, extra_keys)
        return owner.keys[:blocks]

    def stats(self) -> dict[str, float]:
        """Return the number of KV-cache blocks by state, and the numbers of prompt tokens that were found and not found in the
        prefix cache."""
        return {
            "blocks_total": self.n_usable_blocks,
            "blocks_used": self.pool.n_used_blocks - 1,
            "blocks_cached": self.pool.n_cached_blocks,
            "blocks_free": self.pool.n_free_blocks,
            "hit_tokens": self.hit_tokens,
            "miss_tokens": self.miss_tokens,
            "blocks_restored": self.restored,
        }
