"""Block hashes: one key per full block of a prompt. Two blocks have the same key only if the tokens of both blocks and all
earlier tokens of both prompts are equal.

A block's key is a keyed hash of the parent block's key, the block's tokens and the block's extra keys. For placeholder
tokens, the digest of the image embeddings is an extra key. The parent key of a prompt's first block is the root key,
which covers everything that affects all blocks: tenant, weights, adapter and floating-point arithmetic.

The block hash is keyed with a secret. Without the secret, an attacker cannot construct a hash collision, and cannot learn
another tenant's prompts from cache-hit timing or file names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

KEY_BYTES = 32


def root_key(secret: bytes, fingerprint: bytes, tenant: str, block: int) -> bytes:
    """Return the root key of a tenant, which is the parent key of the first block of every prompt.

    `secret` has 16 to 64 random bytes; `fingerprint` comes from `fingerprint_of`. A different secret, fingerprint, tenant or
    block size always gives different block keys.
    """
    # A tenant name from a JSON request may contain lone surrogates.
    fields = (fingerprint, tenant.encode("utf-8", "surrogatepass"), str(block).encode())
    return _hash_key(secret, b"rorqual root", b"".join(map(_prefix_with_length, fields)))


def hash_blocks(
    secret: bytes,
    parent: bytes,
    tokens: Sequence[int] | Any,
    block: int,
    extra_keys: Callable[[int], Sequence[bytes]] = lambda _: (),
) -> list[bytes]:
    """Return one 32-byte key for each full block of `tokens`, a list or array of token ids.

    The first block of `tokens` follows the block with the key `parent`. For the first block of a prompt, `parent` is the root
    key.

    The caller passes the key of a growing sequence's last full block as `parent`, so only the sequence's new blocks are hashed.
    `extra_keys(i)` returns the extra keys of the i-th new block.
    """
    flat, step = np.asarray(tokens, np.int64).astype("<i4").tobytes(), 4 * block
    keys = []
    for number in range(len(flat) // step):
        parent = block_hash(secret, parent, flat[number * step : (number + 1) * step], extra_keys(number))
        keys.append(parent)
    return keys


def block_hash(secret: bytes, parent: bytes, tokens: bytes, extra_keys: Sequence[bytes] = ()) -> bytes:
    """Return the key of a block that holds `tokens` (int32 bytes) and follows the block with the key `parent`.

    Everything that affects the block's contents, except `tokens` and `parent`, must be in `extra_keys`.
    """
    # The encoding is unambiguous: the parent and the tokens have fixed lengths, and each extra key is prefixed with its
    # length.
    return _hash_key(secret, b"rorqual block", b"".join((parent, tokens, *map(_prefix_with_length, extra_keys))))


def max_reusable_blocks(length: int, block: int) -> int:
    """Return how many blocks of a prompt of `length` tokens may be reused from the prefix cache.

    At least one prompt token must be computed, because sampling needs the logits of the last prompt token.
    """
    return max(0, (length - 1) // block)


def fingerprint_of(parts: Mapping[str, str]) -> bytes:
    """Return a 32-byte hash of everything that affects the contents of all blocks: weights, adapter, dtype,
    floating-point arithmetic, layout."""
    fields = [field.encode("utf-8", "surrogatepass") for item in sorted(parts.items()) for field in item]
    return blake2b(b"".join(map(_prefix_with_length, fields)), digest_size=32, person=b"rorqual print").digest()


def _hash_key(secret: bytes, purpose: bytes, message: bytes) -> bytes:
    return blake2b(message, digest_size=KEY_BYTES, key=secret, person=purpose).digest()


def _prefix_with_length(field: bytes) -> bytes:
    return len(field).to_bytes(8, "little") + field
