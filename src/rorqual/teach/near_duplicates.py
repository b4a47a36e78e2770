"""Near-duplicates of texts by MinHash (Broder 1997) and locality-sensitive hashing, with an exact check of each candidate.

Texts are similar if the Jaccard similarity of their character 5-grams is at least `SIMILAR`. Texts with different numbers are
never near-duplicates, because such texts are different problems.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from zlib import crc32

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rorqual.tasks.file_task import normalize_text

SIMILAR = 0.8
WIDTH = 5
"""Number of characters of a character n-gram."""
BANDS, PER_BAND = 12, 4
"""Two texts are candidates if all `PER_BAND` hashes of at least one of the `BANDS` bands
are equal. 99.8 % of the pairs of texts with a similarity of 0.8 become candidates."""
LIKELY = 0.6
"""Smallest share of equal hashes at which a candidate pair is checked exactly."""
NEIGHBOURS = 4
"""A text is compared with the first text of its bucket, and with the `NEIGHBOURS` texts directly before it in the bucket."""
COMMON, COMMON_TEXTS = 20, 20
"""If there are at least `COMMON_TEXTS` texts, a beginning or an end of at least `COMMON` characters that all texts share is
ignored, because such a text is probably an instruction."""
NUMBER = re.compile(r"\d+(?:[.,]\d+)*|[¼-¾⅐-⅞]")
Hashes = NDArray[np.uint64]
FACTORS: Hashes = np.random.default_rng(0).integers(1, 2**63, BANDS * PER_BAND, dtype=np.uint64) * 2 + 1
"""One odd factor for each hash function."""


@dataclass(frozen=True)
class NearDuplicates:
    """The near-duplicates in a list of texts. Each text is given by its index in the list.

    `earlier` maps each text to the earliest similar text that was found and is not an equal copy. A text without an earlier
    similar text is missing in `earlier`. All copies of a text are mapped to the same text, which precedes the first copy.
    `groups` has, for each text, the first text of its group. Texts that a chain of equal or similar texts connects form one
    group.
    """

    earlier: Mapping[int, int]
    groups: Sequence[int]


def find_near_duplicates(texts: Sequence[str]) -> NearDuplicates:
    """Find the near-duplicates in a list of texts."""
    normals = _without_instruction(texts)
    shown = list(dict.fromkeys(normals))
    pairs = list(_similar_pairs(shown))  # sorted by the earlier text
    earliest = {later: one for one, later in reversed(pairs)}
    places = {text: number for number, text in enumerate(shown)}
    at = [places[text] for text in normals]
    first = np.unique(at, return_index=True)[1].tolist()
    ones, others = np.array(pairs, np.int64).reshape(-1, 2).T
    links = coo_array((np.ones(len(pairs)), (ones, others)), (len(shown), len(shown)))
    groups = connected_components(links, directed=False)[1]
    leaders = np.unique(groups, return_index=True)[1]
    return NearDuplicates(
        {number: first[earliest[place]] for number, place in enumerate(at) if place in earliest},
        [first[leaders[groups[place]]] for place in at],
    )


def _without_instruction(texts: Sequence[str]) -> list[str]:
    """Return the texts in normal form, without the beginning and the end that all texts share (see `COMMON`)."""
    normals = [normalize_text(text) for text in texts]
    if len(texts) < COMMON_TEXTS:
        return normals
    start = _shared_prefix_length(normals)
    rest = [text[start:] for text in normals]
    end = _shared_prefix_length([text[::-1] for text in rest])
    return [text[: len(text) - end] for text in rest]


def _shared_prefix_length(texts: Sequence[str]) -> int:
    """Return the length of the beginning that all texts share, up to a space, or 0 if this length is below `COMMON`."""
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(min(texts), max(texts)))
    length = len("".join(letter for letter, _ in pairs).rpartition(" ")[0])
    return length if length >= COMMON else 0


def _similar_pairs(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the (earlier, later) pairs of similar texts that were found, sorted."""
    if texts:
        signatures = np.stack([_signature(text) for text in texts])
        numbers = np.array([crc32(" ".join(NUMBER.findall(text)).encode()) for text in texts], np.uint64)
        for one, later in _candidates(signatures, numbers).tolist():
            if are_near_duplicates(texts[one], texts[later]):
                yield one, later


def are_near_duplicates(a: str, b: str) -> bool:
    """Return whether two normalised texts are near-duplicates."""
    if NUMBER.findall(a) != NUMBER.findall(b):
        return False
    one, two = _character_grams(a), _character_grams(b)
    return len(one & two) >= SIMILAR * len(one | two)


def _character_grams(text: str) -> set[str]:
    return {text[i : i + WIDTH] for i in range(max(1, len(text) - WIDTH + 1))}


def _signature(text: str) -> Hashes:
    """Return the MinHash signature [hashes] of a text."""
    letters = np.frombuffer(text.ljust(WIDTH).encode("utf-32-le", "replace"), np.uint32)
    codes = sliding_window_view(letters.astype(np.uint64), WIDTH) @ FACTORS[:WIDTH]
    codes = (codes ^ (codes >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    codes ^= codes >> np.uint64(32)
    return (FACTORS[:, None] * codes).min(1)


def _candidates(signatures: Hashes, numbers: Hashes) -> NDArray[np.int64]:
    """Return the pairs [pairs, (earlier, later)] of texts to compare exactly.

    For each band, texts with equal hashes are in one bucket. A text is paired with the first text of its bucket and with the
    `NEIGHBOURS` texts directly before it. Texts with different `numbers` are in different buckets. In a common bucket, many
    texts with the same template and different numbers could lie between two similar texts.
    """
    found = []
    for band in np.split(signatures, BANDS, axis=1):
        keys = band @ FACTORS[:PER_BAND] + numbers * FACTORS[PER_BAND]
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        found.append(np.stack([order[np.searchsorted(keys, keys)], order], axis=1))
        for step in range(1, NEIGHBOURS + 1):
            same = keys[step:] == keys[:-step]
            found.append(np.stack([order[:-step][same], order[step:][same]], axis=1))
    pairs = np.unique(np.concatenate(found), axis=0)
    likely = (signatures[pairs[:, 0]] == signatures[pairs[:, 1]]).mean(1) >= LIKELY
    return pairs[likely & (pairs[:, 0] < pairs[:, 1])]
