"""The blocks of each sequence, and the prefix cache. This module uses no tensors.

A full computed block gets a key (`block_hash.py`). It covers all tokens up to the end of the block, embeddings that
replace some of them, the tenant and the weights. Sequences with the same prefix share the block. It stays cached after
its last use until evicted. With a disk store it is written there, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from rorqual.engine.embeds import Embeds
from rorqual.engine.kv_cache.block_hash import extend, matchable, root
from rorqual.engine.kv_cache.block_pool import BlockPool
from rorqual.engine.kv_cache.disk import DiskStore
from rorqual.ops.paged import BLOCK


class Owner(Protocol):
    """The fields of a sequence that `KVCacheManager` uses."""

    tenant: str
    reuse: bool
    tokens: list[int]
    embeds: Embeds | None
    blocks: list[int]
    num_cached_blocks: int
    keys: list[bytes]


@dataclass
class KVCacheManager:
    """Assigns the blocks of one KV cache to sequences. Block 0 belongs to no sequence: padding tokens are written
    there."""

    n_blocks: int
    secret: bytes
    fingerprint: bytes
    read: Callable[[int], bytes]
    """Returns the contents of a block (`PagedCache.read`)."""
    write: Callable[[int, bytes], bool]
    """Restores the contents of a block (`PagedCache.write`)."""
    store: DiskStore | None = None
    """The disk cache, if there is one."""
    clear: Callable[[list[int]], None] | None = None
    """If set, called with new blocks before a sequence gets them."""
    look: Callable[[], None] = lambda: None
    """Called before a cached block is reused or a new one gets its key. It calls `renew` if the weights have changed.
    """
    pool: BlockPool = field(init=False)
    roots: dict[str, bytes] = field(default_factory=dict)
    hit_tokens: int = 0
    miss_tokens: int = 0
    restored: int = 0

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Drop all blocks in memory. Those on disk stay."""
        self.pool = BlockPool(self.n_blocks)
        self.pool.allocate(1)

    @property
    def capacity(self) -> int:
        """Number of blocks that sequences can use."""
        return self.n_blocks - 1

    def renew(self, fingerprint: bytes) -> None:
        """Invalidate all cached blocks, in memory and on disk, because the weights have changed."""
        self.fingerprint = fingerprint
        self.roots.clear()
        self.pool.drop()

    def match(self, owner: Owner, most: int | None = None) -> int:
        """Give `owner`, which has no blocks, the blocks of its longest cached prefix, and return their number of
        tokens.

        At least one token is left to compute. Tokens from `most` on are computed, too.
        """
        if not owner.reuse:
            return 0
        self.look()
        usable = len(owner.tokens) if most is None else min(most, len(owner.tokens))
        keys = self._keys(owner, len(owner.tokens) // BLOCK)[
            : min(usable // BLOCK, matchable(len(owner.tokens), BLOCK))
        ]
        owner.blocks = []
        for key in keys:
            block = self.pool.share(key)
            if block is None:
                block = self._restore(owner, key)
            if block is None:
                break
            owner.blocks.append(block)
        owner.num_cached_blocks = len(owner.blocks)
        return owner.num_cached_blocks * BLOCK

    def _restore(self, owner: Owner, key: bytes) -> int | None:
        if self.store is None or not self.store.has(key):
            return None
        found = self.pool.allocate(1)
        if found is None:
            return None
        contents = self.store.get(key)
        if contents is None or not self.write(found[0], contents):
            self.pool.release(found)
            return None
        self.pool.register(found[0], key, owner.tenant)
        self.restored += 1
        return found[0]

    def grow(self, owner: Owner, length: int) -> bool:
        """Give `owner` blocks for `length` positions. Returns False and changes nothing if too few are available."""
        missing = -(-length // BLOCK) - len(owner.blocks)
        if missing <= 0:
            return True
        found = self.pool.allocate(missing)
        if found is None:
            return False
        if self.clear is not None:
            self.clear(found)
        owner.blocks += found
        return True

    def cache_blocks(self, owner: Owner, length: int) -> None:
        """Cache the full blocks of `owner` among its first `length` positions, which are computed."""
        full = length // BLOCK
        if not owner.reuse or full <= owner.num_cached_blocks:
            return
        before = self.fingerprint
        self.look()
        if self.fingerprint != before:  # the blocks may mix old and new weights
            return
        keys = self._keys(owner, full)
        for place in range(owner.num_cached_blocks, full):
            fresh = self.pool.register(owner.blocks[place], keys[place], owner.tenant)
            if fresh and self.store is not None and not self.store.has(keys[place]):
                self.store.put(keys[place], self.read(owner.blocks[place]))
        owner.num_cached_blocks = full

    def release(self, owner: Owner) -> None:
        """Release the blocks of `owner`."""
        self.pool.release(owner.blocks)
        owner.blocks, owner.num_cached_blocks = [], 0

    def fork(self, owner: Owner, other: Owner, length: int) -> list[tuple[int, int]] | None:
        """Give `other` the first `length` positions of `owner`. Full blocks are shared; the caller must copy the last,
        partial one.

        Returns [(block to copy to, block to copy from)], or [] if no block is partial. None means that no block is
        available.
        """
        full, rest = divmod(length, BLOCK)
        own = self.pool.allocate(1) if rest else []
        if own is None:
            return None
        for block in owner.blocks[:full]:
            self.pool.take(block)
        other.blocks, other.num_cached_blocks = owner.blocks[:full] + own, min(owner.num_cached_blocks, full)
        other.keys = list(owner.keys)
        return [(own[0], owner.blocks[full])] if rest else []

    def _keys(self, owner: Owner, blocks: int) -> list[bytes]:
        """Return the keys of the first `blocks` blocks of `owner`. Keys that it has already are not computed again."""
        known = len(owner.keys)
        if known < blocks:
            if owner.tenant not in self.roots:
                self.roots[owner.tenant] = root(self.secret, self.fingerprint, owner.tenant, BLOCK)
            parent = owner.keys[-1] if known else self.roots[owner.tenant]
            tokens, embeds = owner.tokens[known * BLOCK : blocks * BLOCK], owner.embeds

            def extra_keys(number: int) -> tuple[bytes, ...]:
                start = (known + number) * BLOCK
                return () if embeds is None else embeds.extra_keys(start, start + BLOCK)

            owner.keys += extend(self.secret, parent, tokens, BLOCK, extra_keys)
        return owner.keys[:blocks]

    def stats(self) -> dict[str, float]:
        """Return the number of blocks by state, and of prompt tokens that hit and missed the prefix cache."""
        return {
            "blocks_total": self.capacity,
            "blocks_used": self.pool.used - 1,
            "blocks_cached": self.pool.cached,
            "blocks_free": self.pool.free,
            "hit_tokens": self.hit_tokens,
            "miss_tokens": self.miss_tokens,
            "blocks_restored": self.restored,
        }
