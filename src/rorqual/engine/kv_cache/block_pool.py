"""Which block of the paged cache is whose: reference counts, names, and what is given up first. No tensors here.

A block is in one of three states. *Used*: at least one sequence refers to it. *Cached*: nobody does, but it is known under a key, so that
a prompt with the same beginning can have it again. *Free*: neither.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush

OnEvict = Callable[[int, bytes], None]


class BlockPool:
    """`n_blocks` blocks with ids 0 to n - 1. Every operation takes constant time for each block it touches, or logarithmic where it is free.

    `on_evict(id, key)` is called when a cached block is given up, while its contents still stand: the owner may write them elsewhere.
    It must not call the pool.

    A misuse (a release too many, an id that does not exist, a name for a block nobody holds) is a bug of the caller, which would hand
    one sequence's cache to another: RuntimeError, at once.
    """

    def __init__(self, n_blocks: int, on_evict: OnEvict | None = None) -> None:
        if n_blocks < 1:
            raise ValueError(f"a pool of {n_blocks} blocks")
        self.n_blocks = n_blocks
        self.on_evict = on_evict
        self.evictions = 0
        self._references = [0] * n_blocks
        self._keys: list[bytes | None] = [None] * n_blocks
        self._tenants = [""] * n_blocks
        self._known: dict[bytes, int] = {}
        self._free = list(
            range(n_blocks)
        )  # a heap: blocks in use lie close together, and attention reads them as they lie
        # Least recently used first. An OrderedDict, because popping the front of a plain dict walks over its tombstones.
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._used = 0

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def used(self) -> int:
        return self._used

    @property
    def available(self) -> int:
        """How many blocks `allocate` could give."""
        return len(self._free) + len(self._cached)

    def allocate(self, count: int) -> list[int] | None:
        """`count` unnamed blocks with one reference each, or None and nothing changed where there are not as many."""
        if count < 0:
            raise ValueError(f"{count} blocks asked for")
        if count > len(self._free) + len(self._cached):
            return None
        # Each victim is free before its owner hears of it: an owner that raises loses no block.
        while len(self._free) < count:
            self._evict()
        ids = [heappop(self._free) for _ in range(count)]
        for block in ids:
            self._references[block] = 1
        self._used += count
        return ids

    def _evict(self) -> None:
        block, _ = self._cached.popitem(last=False)
        key = self._forget(block)
        heappush(self._free, block)
        self.evictions += 1
        if self.on_evict is not None:
            self.on_evict(block, key)

    def share(self, key: bytes) -> int | None:
        """The block known under `key`, with one reference more; None where there is none."""
        block = self._known.get(key)
        if block is not None:
            self.take(block)
        return block

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """The blocks of the longest beginning of `keys` that is known, with one reference more each."""
        blocks = []
        for key in keys:
            block = self.share(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def holds(self, key: bytes) -> bool:
        """Whether `share` would hit. Changes nothing, not even what was used last."""
        return key in self._known

    def key(self, block: int) -> bytes | None:
        """The name of a block."""
        self._exists(block)
        return self._keys[block]

    def take(self, block: int) -> None:
        """One reference more to a block that is used or cached."""
        self._exists(block)
        if self._references[block] == 0:
            if block not in self._cached:
                raise RuntimeError(f"block {block} is free: it has no contents to share")
            del self._cached[block]
            self._used += 1
        self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One reference less to each of `blocks`, given in the order of their sequence. Those that nobody refers to any more are cached
        where they have a name, else free.

        The last block counts as the least recently used: a beginning without its continuation can still be hit, the other way round not.
        """
        for block in reversed(blocks):
            self._exists(block)
            left = self._references[block] - 1
            if left < 0:
                raise RuntimeError(f"block {block} is released once too often")
            self._references[block] = left
            if left == 0:
                self._used -= 1
                if self._keys[block] is None:
                    heappush(self._free, block)
                else:
                    self._cached[block] = None

    def register(self, block: int, key: bytes, tenant: str = "") -> bool:
        """Names a full block that the caller holds; from now on others can `share` it, so it must not be written to any more.

        False where another block has that name already: this one stays unnamed, and is free once it is released.
        `tenant` is what `drop` goes by.
        """
        self._exists(block)
        if self._references[block] == 0:
            raise RuntimeError(f"block {block} is named by one who does not hold it")
        known = self._known.get(key)
        if known is not None:
            return known == block
        if self._keys[block] is not None:
            raise RuntimeError(f"block {block} has another name already")
        self._known[key] = block
        self._keys[block] = key
        self._tenants[block] = tenant
        return True

    def drop(self, tenant: str | None = None) -> None:
        """Forgets all names, or those of one tenant, because the contents are out of date. Cached blocks become free, used ones lose
        their names and go on. Nothing is said to `on_evict`: what is out of date is not worth keeping."""
        for block in list(self._known.values()):
            if tenant is None or self._tenants[block] == tenant:
                self._forget(block)
                if self._references[block] == 0:
                    del self._cached[block]
                    heappush(self._free, block)

    def _forget(self, block: int) -> bytes:
        key = self._keys[block]
        assert key is not None
        del self._known[key]
        self._keys[block] = None
        self._tenants[block] = ""
        return key

    def _exists(self, block: int) -> None:
        # Also negative ids: a list would take them from its end.
        if not 0 <= block < self.n_blocks:
            raise RuntimeError(f"block {block} of a pool of {self.n_blocks}")

    def check(self, held: Iterable[Sequence[int]] | None = None) -> None:
        """Raises RuntimeError unless every block is in exactly one state and all indices agree.

        `held`: the blocks of every live sequence; where given, each block has as many references as sequences that hold it.
        """
        references, keys = self._references, self._keys
        used = sum(map(bool, references))
        free, cached = set(self._free), set(self._cached)
        named = {block for block, key in enumerate(keys) if key is not None}
        laws = {
            f"{used} blocks have references, {self._used} were counted": used == self._used,
            "a reference count below 0": min(references) >= 0,
            "free + cached + used is not the number of blocks": used + len(free) + len(cached) == self.n_blocks,
            "a block is free twice": len(free) == len(self._free),
            "a block is both free and cached": free.isdisjoint(cached),
            "a block with references is free or cached": not any(map(references.__getitem__, free | cached)),
            "a free block has a name": free.isdisjoint(named),
            "a cached block has no name": cached <= named,
            "names and blocks disagree": len(self._known) == len(named)
            and all(keys[block] == key for key, block in self._known.items()),
        }
        if held is not None:
            counts = [0] * self.n_blocks
            for blocks in held:
                for block in blocks:
                    counts[block] += 1
            laws["references and live sequences disagree"] = counts == references
        broken = [law for law, holds in laws.items() if not holds]
        if broken:
            raise RuntimeError("the block pool is broken: " + "; ".join(broken))
