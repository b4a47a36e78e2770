"""Which blocks a sequence has: what is shared with others, what is new, what outlives it. No tensors here.

A full block that was computed is named by all tokens up to its end and the embeddings that stand for some of them, its tenant and the
weights (`block_hash.py`): from then on
whoever begins alike shares it, and after its last user it stays until its place is needed. With a folder it is written there, too.
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
    """What `KVCacheManager` needs of a sequence."""

    tenant: str
    reuse: bool
    tokens: list[int]
    embeds: Embeds | None
    blocks: list[int]
    num_cached_blocks: int
    keys: list[bytes]


@dataclass
class KVCacheManager:
    """The blocks of one cache. `read(block)` and `write(block, contents)` are the cache's; `store` is its folder, where it has one. `clear`,
    where it is set, gets blocks before a sequence has them. `look` is called before a block is used again or named: it calls
    `renew` where the weights have changed.

    Block 0 is nobody's: what fills up a step is written there.
    """

    n_blocks: int
    secret: bytes
    fingerprint: bytes
    read: Callable[[int], bytes]
    write: Callable[[int, bytes], bool]
    store: DiskStore | None = None
    clear: Callable[[list[int]], None] | None = None
    look: Callable[[], None] = lambda: None
    pool: BlockPool = field(init=False)
    roots: dict[str, bytes] = field(default_factory=dict)
    hit_tokens: int = 0
    miss_tokens: int = 0
    restored: int = 0

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Nobody has a block, and none is known, but in the folder."""
        self.pool = BlockPool(self.n_blocks)
        self.pool.allocate(1)

    @property
    def capacity(self) -> int:
        """Blocks that sequences can have."""
        return self.n_blocks - 1

    def renew(self, fingerprint: bytes) -> None:
        """Other weights: nothing that was kept may serve again, here or from the folder."""
        self.fingerprint = fingerprint
        self.roots.clear()
        self.pool.drop()

    def match(self, owner: Owner, most: int | None = None) -> int:
        """Give `owner`, which has no blocks, those of the longest beginning of its tokens that is known; how many tokens these hold.

        At least one token is left to compute, and those from `most` on.
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
        """Give `owner` blocks for `length` positions; False, and nothing changed, where there are not as many."""
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
        """Positions 0 .. length - 1 of `owner` are computed: its full blocks among them can be shared from now on."""
        full = length // BLOCK
        if not owner.reuse or full <= owner.num_cached_blocks:
            return
        before = self.fingerprint
        self.look()
        if self.fingerprint != before:  # these may hold both
            return
        keys = self._keys(owner, full)
        for place in range(owner.num_cached_blocks, full):
            fresh = self.pool.register(owner.blocks[place], keys[place], owner.tenant)
            if fresh and self.store is not None and not self.store.has(keys[place]):
                self.store.put(keys[place], self.read(owner.blocks[place]))
        owner.num_cached_blocks = full

    def release(self, owner: Owner) -> None:
        """`owner` leaves its blocks."""
        self.pool.release(owner.blocks)
        owner.blocks, owner.num_cached_blocks = [], 0

    def fork(self, owner: Owner, other: Owner, length: int) -> list[tuple[int, int]] | None:
        """Give `other` the first `length` positions of `owner`: full blocks shared, the rest to be copied.

        [(block to copy to, block to copy from)], or nothing where it is full; None where there is no block for it.
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
        """The names of the first `blocks` blocks of `owner`; what is known already is not hashed again."""
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
        """Blocks by state, and tokens of prompts that were found and that were computed."""
        return {
            "blocks_total": self.capacity,
            "blocks_used": self.pool.used - 1,
            "blocks_cached": self.pool.cached,
            "blocks_free": self.pool.free,
            "hit_tokens": self.hit_tokens,
            "miss_tokens": self.miss_tokens,
            "blocks_restored": self.restored,
        }
