"""The names of cached blocks: one key for each full block of a prompt, so that equal beginnings have equal keys and nothing else has.

A key is a keyed hash over the block's tokens, its extra keys (a digest of the embeddings that stand there instead of its tokens') and the
key of the block before it, back to a root made of whatever changes all contents: the tenant, the weights with their adapter, the
arithmetic. Without the secret nobody can make a prompt that collides, nor learn from a hit's timing or a file's name what another tenant
asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

KEY_BYTES = 32
_INT32 = np.iinfo(np.int32)


def chain(secret: bytes, fingerprint: bytes, tenant: str, tokens: Sequence[int] | Any, block: int) -> list[bytes]:
    """One key of 32 bytes for each full block of `tokens` ([length], a list or an array of integers).

    `secret`: 16 to 64 random bytes; `fingerprint`: see `fingerprint_of`. Keys that differ in any of secret, fingerprint, tenant and block
    size never meet. ValueError: a secret of another length, tokens that are not int32, a block below 1.
    """
    return extend(secret, root(secret, fingerprint, tenant, block), tokens, block)


def root(secret: bytes, fingerprint: bytes, tenant: str, block: int) -> bytes:
    """What stands before a tenant's first block."""
    if not 16 <= len(secret) <= 64:
        raise ValueError(f"a secret of {len(secret)} bytes; it has 16 to 64")
    if block < 1:
        raise ValueError(f"blocks of {block} tokens")
    # A JSON request can bring lone surrogates: they are names like any other.
    fields = (fingerprint, tenant.encode("utf-8", "surrogatepass"), str(block).encode())
    return _keyed(secret, b"rorqual root", b"".join(map(_prefixed, fields)))


def extend(
    secret: bytes,
    parent: bytes,
    tokens: Sequence[int] | Any,
    block: int,
    extra_keys: Callable[[int], Sequence[bytes]] = lambda _: (),
) -> list[bytes]:
    """The keys of the full blocks of `tokens` that follow the block named `parent` (or `root`): a sequence that grows hashes only what is
    new. `extra_keys(i)`: those of the i-th of these blocks."""
    if len(parent) != KEY_BYTES:
        raise ValueError(f"a parent of {len(parent)} bytes; keys have {KEY_BYTES}")
    flat, step = _as_bytes(tokens), 4 * block
    keys = []
    for number in range(len(flat) // step):
        parent = block_hash(secret, parent, flat[number * step : (number + 1) * step], extra_keys(number))
        keys.append(parent)
    return keys


def block_hash(secret: bytes, parent: bytes, tokens: bytes, extra_keys: Sequence[bytes] = ()) -> bytes:
    """The key of the block of `tokens` (int32) that follows the block named `parent`. `extra_keys`: what else decides its contents."""
    # A parent of 32 bytes and a block's tokens, of one length, and then keys with their lengths: one reading.
    return _keyed(secret, b"rorqual block", b"".join((parent, tokens, *map(_prefixed, extra_keys))))


def matchable(length: int, block: int) -> int:
    """How many blocks of a prompt of `length` tokens may come from the cache: at least one token must be computed, to get logits from."""
    return max(0, (length - 1) // block)


def fingerprint_of(parts: Mapping[str, str]) -> bytes:
    """32 bytes for everything that changes what a block holds: the digest of the weights, the adapter, type, arithmetic, layout."""
    fields = [field.encode("utf-8", "surrogatepass") for item in sorted(parts.items()) for field in item]
    return blake2b(b"".join(map(_prefixed, fields)), digest_size=32, person=b"rorqual print").digest()


def _keyed(secret: bytes, purpose: bytes, message: bytes) -> bytes:
    return blake2b(message, digest_size=KEY_BYTES, key=secret, person=purpose).digest()


def _prefixed(field: bytes) -> bytes:
    return len(field).to_bytes(8, "little") + field


def _as_bytes(tokens: Sequence[int] | Any) -> bytes:
    values = np.asarray(tokens)
    if values.size == 0:
        return b""
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(f"tokens of shape {list(values.shape)} and type {values.dtype}; a row of integers is needed")
    # Cast in silence, 2**32 would be token 0.
    if values.min() < _INT32.min or values.max() > _INT32.max:
        raise ValueError("a token beyond int32")
    return values.astype("<i4").tobytes()
