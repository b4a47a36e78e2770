"""Near-duplicates of texts by MinHash (Broder 1997) and locality-sensitive hashing, with an exact check of each candidate.

Texts are similar if the Jaccard similarity of their character 5-grams is at least `SIMILAR`. Texts with different numbers are never
near-duplicates, because other numbers make another problem.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rorqual.tasks.rows import normal

SIMILAR = 0.8
WIDTH = 5
"""Length of a character n-gram, in bytes for MinHash and in characters for the exact check."""
BANDS, PER_BAND = 12, 4
"""Texts are candidates if all `PER_BAND` hashes of one of `BANDS` bands agree. At a similarity of 0.8, 99.8 % of pairs are found."""
CHUNK = 1 << 20
"""Number of bytes whose n-grams are hashed at once, which bounds the memory."""
LIKELY = 0.6
"""Smallest share of equal hashes at which a candidate is checked exactly."""
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
Hashes = NDArray[np.uint64]


def near_duplicates(texts: Sequence[str]) -> dict[int, int]:
    """Return, for each text that is similar to an earlier one, the index of such an earlier text. Equal texts are not listed.

    The earlier text of a pair is itself the first of its group if a similar first one is known.
    """
    if not texts:
        return {}
    shown = [normal(text) for text in texts]
    signatures = _signatures([text.encode("utf-8", "replace") for text in shown])
    earlier: dict[int, int] = {}
    seen: set[tuple[int, int]] = set()
    for first, later in _candidates(signatures):
        if later in earlier or (first, later) in seen or shown[first] == shown[later]:
            continue
        seen.add((first, later))
        if float((signatures[:, first] == signatures[:, later]).mean()) >= LIKELY and similar(
            shown[first], shown[later]
        ):
            earlier[later] = earlier.get(first, first)
    return earlier


def similar(a: str, b: str) -> bool:
    """Return whether two normalised texts are near-duplicates."""
    if NUMBER.findall(a) != NUMBER.findall(b):
        return False
    one, two = _grams(a), _grams(b)
    return len(one & two) >= SIMILAR * len(one | two)


def _grams(text: str) -> set[str]:
    return {text[i : i + WIDTH] for i in range(max(1, len(text) - WIDTH + 1))}


def _signatures(texts: Sequence[bytes]) -> Hashes:
    """Return the MinHash signatures [hashes, texts]."""
    rng = np.random.default_rng(0)
    count = BANDS * PER_BAND
    factors = rng.integers(1, 2**63, count, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    result = np.zeros((count, len(texts)), np.uint64)
    start = 0
    while start < len(texts):
        end, size = start, 0
        while end < len(texts) and (end == start or size + len(texts[end]) <= CHUNK):
            size += len(texts[end])
            end += 1
        result[:, start:end] = _part(texts[start:end], factors)
        start = end
    return result


def _part(texts: Sequence[bytes], factors: Hashes) -> Hashes:
    padded = [text.ljust(WIDTH, b"\0") for text in texts]
    lengths = np.array([len(text) - WIDTH + 1 for text in padded])
    data = np.frombuffer(b"".join(padded), np.uint8).astype(np.uint64)
    codes = np.zeros(len(data) - WIDTH + 1, np.uint64)
    for place in range(WIDTH):
        codes = codes * np.uint64(257) + data[place : place + len(codes)]
    starts = np.cumsum([0, *(lengths[:-1] + WIDTH - 1)])
    inside = np.zeros(len(codes), bool)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        inside[start : start + length] = True
    codes = codes[inside]
    codes = (codes ^ (codes >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    codes ^= codes >> np.uint64(32)
    firsts = np.cumsum([0, *lengths[:-1]])
    return np.stack([np.minimum.reduceat(codes * factor, firsts) for factor in factors])


def _candidates(signatures: Hashes) -> Any:
    """Yield (earlier, later) pairs that share a band: each text with the first and with the previous text of its bucket."""
    for band in range(BANDS):
        keys = np.zeros(signatures.shape[1], np.uint64)
        for row in signatures[band * PER_BAND : (band + 1) * PER_BAND]:
            keys = (keys ^ row) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(31)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        bounds = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        for begin, end in zip(bounds.tolist(), [*bounds[1:].tolist(), len(order)], strict=True):
            bucket = order[begin:end].tolist()
            for place in range(1, len(bucket)):
                yield bucket[0], bucket[place]
                if place > 1:
                    yield bucket[place - 1], bucket[place]
