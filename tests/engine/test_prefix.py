"""The names of cached blocks: equal where the contents must be equal, and nowhere else."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from rorqual.engine.kv_cache.block_hash import fingerprint_of, hash_blocks, max_reusable_blocks, root_key

SECRET = bytes(range(32))
TOKENS = st.lists(st.integers(0, 3), max_size=24)
TENANT = st.text(st.characters(codec=None), max_size=8)  # lone surrogates included


def chain(secret: bytes, fingerprint: bytes, tenant: str, tokens: Sequence[int], block: int) -> list[bytes]:
    """The keys of a prompt's full blocks."""
    return hash_blocks(secret, root_key(secret, fingerprint, tenant, block), tokens, block)


def by_hand(secret: bytes, fingerprint: bytes, tenant: str, tokens: list[int], block: int) -> list[bytes]:
    """The same keys, from the description alone."""
    name, size = tenant.encode("utf-8", "surrogatepass"), str(block).encode()
    message = b"".join(struct.pack("<Q", len(part)) + part for part in (fingerprint, name, size))
    parent = hashlib.blake2b(message, key=secret, digest_size=32, person=b"rorqual root").digest()
    keys = []
    while len(tokens) >= block:
        message = parent + struct.pack(f"<{block}i", *tokens[:block])
        parent = hashlib.blake2b(message, key=secret, digest_size=32, person=b"rorqual block").digest()
        keys.append(parent)
        tokens = tokens[block:]
    return keys


@given(TOKENS, TENANT, st.binary(max_size=40), st.integers(1, 9))
def test_keys_are_the_hashes_that_the_description_says(tokens, tenant, fingerprint, block) -> None:
    assert chain(SECRET, fingerprint, tenant, tokens, block) == by_hand(SECRET, fingerprint, tenant, tokens, block)


def test_a_key_of_today_is_found_tomorrow() -> None:
    """Keys name files that outlive the process: another hash would make every file of a user's cache a miss."""
    keys = chain(SECRET, b"weights", "ann", range(5), 2)
    assert [key.hex()[:16] for key in keys] == ["8725cdddecbfe7d9", "8b9fab25bb1bf7b4"]


@given(TOKENS, TOKENS, st.integers(1, 5))
def test_two_prompts_share_exactly_the_full_blocks_they_begin_with_alike(one, two, block) -> None:
    alike = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    keys, others = chain(SECRET, b"", "", one, block), chain(SECRET, b"", "", two, block)
    assert len(keys) == len(one) // block and len(set(keys)) == len(keys)
    for i, key in enumerate(keys):
        assert [j for j, other in enumerate(others) if other == key] == ([i] if i < alike // block else [])


KEYS = st.lists(st.lists(st.binary(max_size=9), max_size=3), min_size=3, max_size=3)


@given(KEYS, KEYS)
def test_extra_keys_name_their_block_and_all_later_ones(one, two) -> None:
    """A block's own extra keys are among what it is hashed from, in one reading; those of earlier blocks through its parent."""
    start, tokens = root_key(SECRET, b"f", "t", 2), [5, 6] * 3
    keys, others = (hash_blocks(SECRET, start, tokens, 2, extra.__getitem__) for extra in (one, two))
    for place in range(3):
        assert (keys[place] == others[place]) == (one[: place + 1] == two[: place + 1])
    assert hash_blocks(SECRET, start, tokens, 2, [[], [], []].__getitem__) == chain(SECRET, b"f", "t", tokens, 2)
    assert hash_blocks(SECRET, keys[0], tokens[2:], 2, one[1:].__getitem__) == keys[1:]


@given(st.integers(0, 300), st.integers(1, 70))
def test_one_token_at_least_remains_to_be_fed(length, block) -> None:
    hits = max_reusable_blocks(length, block)
    assert hits >= 0 and (hits * block < length or length == 0 == hits)
    assert (hits + 1) * block >= length, "and no full block before it is left out"


def test_a_fingerprint_names_every_part() -> None:
    parts = {"weights": "ab", "adapter": "c", "dtype": "bf16"}
    mark = fingerprint_of(parts)
    assert len(mark) == 32 and mark == fingerprint_of(dict(reversed(parts.items())))
    others = [{**parts, name: "other"} for name in parts] + [{"weights": "a", "adapter": "bc", "dtype": "bf16"}]
    others += [{"weights": "ab", "adapter": "c"}, {**parts, "": ""}]
    assert len({mark, *map(fingerprint_of, others)}) == len(others) + 1
