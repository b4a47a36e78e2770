"""Which blocks a sequence has: what is found is its own past, at least one token is left to be fed, nothing is lost or shared too far."""

from __future__ import annotations

from pathlib import Path

import pytest
from tape import Tape, sequence, some_ids

from rorqual.engine.kv_cache.disk import DiskStore
from rorqual.engine.kv_cache.manager import KVCacheManager
from rorqual.engine.scheduler import Sequence
from rorqual.ops.paged import BLOCK

PROMPT = some_ids(0, 3 * BLOCK + 7)


def pages_of(blocks: int = 12, store: DiskStore | None = None, secret: bytes = b"s" * 32) -> KVCacheManager:
    contents: dict[int, bytes] = {}

    def write(block: int, found: bytes) -> bool:
        contents[block] = found
        return found != b"damaged"

    return KVCacheManager(
        blocks, secret, b"weights", lambda block: contents.get(block, b"block %d" % block), write, store
    )


def owner(request_id: int = 0, tokens: tuple[int, ...] = PROMPT, tenant: str = "a", *, reuse: bool = True) -> Sequence:
    one = sequence(request_id, tokens, tenant=tenant, reuse=reuse)
    one.tokens = list(tokens)
    return one


def fill(pages: KVCacheManager, one: Sequence) -> None:
    assert pages.grow(one, len(one.tokens))
    pages.cache_blocks(one, len(one.tokens))


@pytest.mark.parametrize(
    ("tokens", "tenant", "reuse", "found"),
    [
        (PROMPT, "a", True, 3),
        (PROMPT[: 3 * BLOCK], "a", True, 2),  # one token at least is fed
        (PROMPT[: 3 * BLOCK + 1], "a", True, 3),
        ((*PROMPT[:BLOCK], 1, *PROMPT[BLOCK + 1 :]), "a", True, 1),
        ((1, *PROMPT[1:]), "a", True, 0),
        (PROMPT[1:], "a", True, 0),
        (PROMPT, "b", True, 0),
        (PROMPT, "a", False, 0),
    ],
)
def test_what_is_found_is_the_longest_beginning_of_the_same_tenant(
    tokens: tuple[int, ...], tenant: str, reuse: bool, found: int
) -> None:
    pages, first = pages_of(), owner()
    fill(pages, first)
    second = owner(1, tokens, tenant, reuse=reuse)
    assert pages.match(second) == found * BLOCK
    assert second.blocks == first.blocks[:found]
    pages.pool.check([[0], first.blocks, second.blocks])


def test_what_nobody_may_reuse_is_never_named() -> None:
    pages, first = pages_of(), owner(reuse=False)
    fill(pages, first)
    assert pages.match(owner(1)) == 0
    pages.release(first)
    assert pages.pool.cached == 0 and pages.pool.used == 1


def test_a_last_block_that_is_not_full_is_not_shared_but_copied() -> None:
    pages, first, second = pages_of(), owner(), owner(1)
    fill(pages, first)
    ((to, from_),) = pages.fork(first, second, len(PROMPT)) or [(0, 0)]
    assert from_ == first.blocks[3] and to == second.blocks[3] not in first.blocks
    assert second.blocks[:3] == first.blocks[:3]
    third = owner(2)
    assert pages.fork(first, third, 3 * BLOCK) == [] and third.blocks == first.blocks[:3]
    pages.pool.check([[0], first.blocks, second.blocks, third.blocks])


def test_where_there_is_no_block_nothing_changes() -> None:
    pages, first = pages_of(5), owner()
    fill(pages, first)
    second = owner(1, (9,) * 10)
    assert not pages.grow(second, 10) and second.blocks == []
    assert pages.fork(first, second, len(PROMPT)) is None and second.blocks == []
    pages.pool.check([[0], first.blocks])


def test_after_new_weights_nothing_old_is_found_also_not_by_who_runs() -> None:
    """One that has begun with old weights goes on; what it fills holds both, and must not be named for the new."""
    tape = Tape(2, 20, step_tokens=1000)
    running = sequence(0, PROMPT[:60], new=40, tenant="a", endless=True)
    tape.scheduler.submit([running])
    tape.step()
    tape.scheduler.renew(b"other weights")
    while not tape.scheduler.idle:
        tape.step()
    after = owner(1, (*tape.ids[0][:BLOCK], 3, 3))
    assert tape.kv_cache.match(after) == 0


def test_a_block_from_disk_is_found_again_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    with DiskStore(tmp_path, 1 << 20, b"weights") as store:
        pages = pages_of(store=store, secret=store.secret)
        fill(pages, owner())
    for spoiled, found in ((None, 3), (1, 1)):
        with DiskStore(tmp_path, 1 << 20, b"weights") as store:
            pages, one = pages_of(store=store, secret=store.secret), owner(5)
            if spoiled is not None:
                key = pages._keys(one, 3)[spoiled]
                (file,) = tmp_path.glob(f"{key.hex()}*")
                data = bytearray(file.read_bytes())
                data[len(data) // 2] ^= 1
                file.write_bytes(data)
            assert pages.match(one) == found * BLOCK and pages.restored == found
            pages.pool.check([[0], one.blocks])
            assert pages.grow(one, len(PROMPT))


def test_contents_that_the_cache_refuses_are_a_miss(tmp_path: Path) -> None:
    with DiskStore(tmp_path, 1 << 20, b"weights") as store:
        pages = pages_of(store=store, secret=store.secret)
        one = owner()
        store.put(pages._keys(one, 1)[0], b"damaged")
        assert pages.match(one) == 0 and one.blocks == [] and pages.pool.used == 1


def test_with_no_place_to_put_it_a_block_on_disk_is_a_miss(tmp_path: Path) -> None:
    with DiskStore(tmp_path, 1 << 20, b"weights") as store:
        fill(pages_of(store=store, secret=store.secret), owner())
        pages = pages_of(3, store=store, secret=store.secret)
        one = owner(1)
        assert pages.match(one) == 2 * BLOCK
        pages.pool.check([[0], one.blocks])


def test_samples_of_one_prompt_name_their_own_replies() -> None:
    """They share the names of the prompt's blocks, and a block of one reply is not found by the other's."""
    pages, first, second = pages_of(20), owner(), owner(1)
    fill(pages, first)
    pages.fork(first, second, len(PROMPT))
    replies = some_ids(1, 2 * BLOCK), some_ids(2, 2 * BLOCK)
    for one, reply in zip((first, second), replies):
        one.tokens = [*PROMPT, *reply]
        fill(pages, one)
    assert first.keys[:3] == second.keys[:3] and not {*first.keys[3:]} & {*second.keys[3:]}
    for number, (one, reply) in enumerate(zip((first, second), replies), start=2):
        again = owner(number, (*PROMPT, *reply))
        assert pages.match(again) == 5 * BLOCK and again.blocks == one.blocks[:5]
