"""Near-duplicates of texts by MinHash (Broder 1997) and locality-sensitive hashing, with an exact check of each candidate.

Texts are similar if the Jaccard similarity of their character 5-grams is at least `SIMILAR`. Texts with different numbers are never
near-duplicates, because other numbers make another problem.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

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
NEIGHBOURS = 4
"""A text is compared with the first text of its bucket and with so many texts directly before it."""
NUMBER = re.compile(r"\d+(?:[.,]\d+)*|[¼-¾⅐-⅞]")
Hashes = NDArray[np.uint64]


COMMON, COMMON_TEXTS = 20, 20
"""A beginning or an end that all of at least `COMMON_TEXTS` texts share is ignored if it has at least `COMMON` characters, because it is
an instruction."""


def near_duplicates(texts: Sequence[str]) -> dict[int, int]:
    """Return, for each text that is similar to an earlier one, the index of the earliest such text that was found.

    Equal texts are not similar in this sense: a text that occurred before has the earlier text of its first occurrence, if there is one.
    """
    first = _first_places(texts)
    shown = [*first]
    earliest: dict[int, int] = {}
    for one, later in _pairs(shown, lambda one, later: earliest.get(later, later) <= one):
        earliest[later] = one
    places = {text: number for number, text in enumerate(shown)}
    found = ((number, earliest.get(places[text])) for number, text in enumerate(_normals(texts)))
    return {number: first[shown[one]] for number, one in found if one is not None}


def near_groups(texts: Sequence[str]) -> list[int]:
    """Return for each text the index of the first text of its group. Equal and similar texts, and those similar to them, are a group."""
    first = _first_places(texts)
    shown = [*first]
    parent = list(range(len(shown)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    for one, later in _pairs(shown, lambda one, later: root(one) == root(later)):
        a, b = root(one), root(later)
        parent[max(a, b)] = min(a, b)
    places = {text: number for number, text in enumerate(shown)}
    return [first[shown[root(places[text])]] for text in _normals(texts)]


def _normals(texts: Sequence[str]) -> list[str]:
    """Return the texts in normal form, without a long beginning and end that all share."""
    normals = [normal(text) for text in texts]
    if len(texts) < COMMON_TEXTS:
        return normals
    start = _common(normals)
    rest = [text[start:] for text in normals]
    end = _common([text[::-1] for text in rest])
    return [text[: len(text) - end] for text in rest]


def _common(texts: Sequence[str]) -> int:
    """Return the length of the beginning that all texts share, up to a space, or 0 if it is shorter than `COMMON`."""
    least, most = min(texts), max(texts)
    shared = next((place for place, (a, b) in enumerate(zip(least, most)) if a != b), min(len(least), len(most)))
    length = len(least[:shared].rpartition(" ")[0])
    return length if length >= COMMON else 0


def _first_places(texts: Sequence[str]) -> dict[str, int]:
    first: dict[str, int] = {}
    for number, text in enumerate(_normals(texts)):
        first.setdefault(text, number)
    return first


def _pairs(shown: Sequence[str], known: Callable[[int, int], bool]) -> Iterator[tuple[int, int]]:
    """Yield the (earlier, later) pairs of similar texts that were found, without those that are `known` already."""
    if not shown:
        return
    numbers: dict[str, int] = {}
    ids = [numbers.setdefault(" ".join(NUMBER.findall(text)), len(numbers)) for text in shown]
    signatures = _signatures([text.encode("utf-8", "replace") for text in shown])
    seen: set[tuple[int, int]] = set()
    for one, later in _candidates(signatures, np.array(ids, np.uint64)):
        if (one, later) in seen or known(one, later):
            continue
        seen.add((one, later))
        if float((signatures[:, one] == signatures[:, later]).mean()) >= LIKELY and similar(shown[one], shown[later]):
            yield one, later


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


def _candidates(signatures: Hashes, numbers: Hashes) -> Iterator[tuple[int, int]]:
    """Yield (earlier, later) pairs that share a band: each text with the first and the previous texts of its bucket.

    Texts with different `numbers` are in different buckets. Otherwise many texts of one template, with other numbers each, would
    lie between two similar texts.
    """
    for band in range(BANDS):
        keys = numbers.copy()
        for row in signatures[band * PER_BAND : (band + 1) * PER_BAND]:
            keys = (keys ^ row) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(31)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        ends = np.append(begins[1:], len(order))
        shared = ends - begins > 1
        for begin, end in zip(begins[shared].tolist(), ends[shared].tolist(), strict=True):
            bucket = order[begin:end].tolist()
            for place in range(1, len(bucket)):
                for one in {bucket[0], *bucket[max(0, place - NEIGHBOURS) : place]}:
                    yield one, bucket[place]
