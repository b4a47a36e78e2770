"""Which blocks a sequence has: what is found is its own past, at least one token is left to be fed, nothing is lost or shared too far."""

from __future__ import annotations

import pytest
from consistency import check_pool
from tape import sequence, some_ids

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
    assert pages.allocate_up_to(one, len(one.tokens))
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
    check_pool(pages.pool, [[0], first.blocks, second.blocks])


def test_samples_of_one_prompt_name_their_own_replies() -> None:
    """They share the names of the prompt's blocks, and a block of one reply is not found by the other's."""
    pages, first, second = pages_of(20), owner(), owner(1)
    fill(pages, first)
    pages.fork_blocks(first, second, len(PROMPT))
    replies = some_ids(1, 2 * BLOCK), some_ids(2, 2 * BLOCK)
    for one, reply in zip((first, second), replies):
        one.tokens = [*PROMPT, *reply]
        fill(pages, one)
    assert first.keys[:3] == second.keys[:3] and not {*first.keys[3:]} & {*second.keys[3:]}
    for number, (one, reply) in enumerate(zip((first, second), replies), start=2):
        again = owner(number, (*PROMPT, *reply))
        assert pages.match(again) == 5 * BLOCK and again.blocks == one.blocks[:5]
