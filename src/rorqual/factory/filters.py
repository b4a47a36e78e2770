"""Filters of a teacher's samples. The name of the filter that drops a sample is stored in the sample's column `dropped`."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

from rorqual.data.distilled import TeacherSample
from rorqual.factory.config import FilterConfig, KeptSamples

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|[^\w\s]|_")
"""Matches a word of letters and digits, a punctuation mark or symbol, or a character of a script without spaces."""
EXCLUDED: Mapping[KeptSamples, tuple[str, ...]] = {"right": ("wrong", "ungraded"), "graded": ("ungraded",), "all": ()}
"""For each value of the setting `keep`: the verdicts of the samples that are dropped."""
FEW_LINES = 4
"""Smallest number of lines of a text in which repeated lines are counted."""
NGRAM, REPEATED = 8, 0.6
"""Number of words of an n-gram when repetition is measured, and the largest allowed share of repeated lines and of words in
repeated n-grams."""
FOREIGN = 0.2
"""The largest allowed share of letters outside the sample's most frequent script."""
SHINGLE, SIMILAR = 3, 0.8
"""Number of consecutive words of a shingle, and the Jaccard similarity from which two samples of a problem are duplicates."""


def words(text: str) -> list[str]:
    """Split a text into case-folded words, punctuation marks and symbols."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def repeated_share(text: str) -> float:
    """Return the larger of two shares: the share of words in n-grams that occurred earlier in the text, and the share
    of repeated lines."""
    tokens = words(text)
    seen: set[tuple[str, ...]] = set()
    covered = [False] * len(tokens)
    for start in range(len(tokens) - NGRAM + 1):
        gram = tuple(tokens[start : start + NGRAM])
        if gram in seen:
            covered[start : start + NGRAM] = [True] * NGRAM
        seen.add(gram)
    lines = [" ".join(line.split()) for line in text.split("\n") if line.strip()]
    n_repeated = len(lines) - len(set(lines)) if len(lines) >= FEW_LINES else 0
    return max(sum(covered) / max(len(tokens), 1), n_repeated / max(len(lines), 1))


@lru_cache(maxsize=4096)
def script_of(letter: str) -> str:
    """Return the script of a letter, such as `LATIN`, from its Unicode name. Japanese and Korean scripts count as `CJK`."""
    name = unicodedata.name(letter, "UNKNOWN").replace("-", " ").split()[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA", "HANGUL", "IDEOGRAPHIC") else name


def foreign_share(text: str) -> float:
    """Return the share (0 to 1) of letters that are not in the text's most frequent script."""
    letters = Counter(script_of(c) for c in unicodedata.normalize("NFKC", text) if c.isalpha())
    return 1 - letters.most_common(1)[0][1] / letters.total() if letters else 0.0


def shingles(text: str, size: int) -> frozenset[tuple[str, ...]]:
    """Return all sequences of `size` consecutive words in `text`. A text with fewer than `size` words counts as one
    sequence."""
    tokens = words(text)
    return frozenset(tuple(tokens[i : i + size]) for i in range(max(1, len(tokens) - size + 1)))


def jaccard(first: frozenset[tuple[str, ...]], second: frozenset[tuple[str, ...]]) -> float:
    """Return the Jaccard similarity (0 to 1) of two sets. The similarity of two empty sets is 1."""
    union = len(first | second)
    return len(first & second) / union if union else 1.0


def mark_duplicates(texts: Sequence[str], shingle: int, similar: float) -> list[bool]:
    """Return for each text whether it duplicates an earlier text. A text is compared only with earlier texts that are not
    duplicates.

    Texts are duplicates if they are identical, or if the Jaccard similarity of their shingles is at least `similar`. The
    comparison is exact, without hashing or sketches, because a problem has few samples.
    """
    kept: list[tuple[str, frozenset[tuple[str, ...]]]] = []
    flags: list[bool] = []
    for text in texts:
        own = shingles(text, shingle)
        is_duplicate = any(text == earlier_text or jaccard(own, earlier) >= similar for earlier_text, earlier in kept)
        flags.append(is_duplicate)
        if not is_duplicate:
            kept.append((text, own))
    return flags


def reply_text(row: TeacherSample) -> str:
    """Return the text that the teacher generated: its reasoning and its answer."""
    reply = row.messages[-1]
    return f"{reply.reasoning or ''}\n{reply.text}".strip("\n")


def drop_reason_of_sample(
    row: TeacherSample, cut_off: bool, contaminated: bool, filters: FilterConfig, keep: KeptSamples
) -> str:
    """Return the first reason to drop a sample, or an empty string to keep the sample. Duplicates are checked separately, in `drop_reasons`."""
    text = reply_text(row)
    enabled = set(filters.names)
    if "length" in enabled and (cut_off or not text):
        return "length"
    if row.verdict in EXCLUDED[keep]:
        return row.verdict
    if "repetition" in enabled and repeated_share(text) > REPEATED:
        return "repetition"
    if "language" in enabled and foreign_share(text) > FOREIGN:
        return "language"
    return "contaminated" if "contaminated" in enabled and contaminated else ""


def drop_reasons(
    rows: Sequence[TeacherSample],
    cut_off: Sequence[bool],
    contaminated: Sequence[bool],
    filters: FilterConfig,
    keep: KeptSamples,
    failed: Sequence[bool] = (),
) -> list[str]:
    """Return for each row the reason to drop the row, or an empty string to keep the row.

    A row can be a duplicate only of a row of the same problem that no other filter drops. `failed` tells for each row whether
    the row lacks an answer. If `failed` is empty, all rows have answers. Failed rows are dropped as `error`, regardless of
    `filters` and `keep`.
    """
    results = [
        "error" if has_failed else drop_reason_of_sample(row, is_cut, matches, filters, keep)
        for row, is_cut, matches, has_failed in zip(
            rows, cut_off, contaminated, failed or [False] * len(rows), strict=True
        )
    ]
    if "duplicate" not in filters.names:
        return results
    groups: dict[str, list[int]] = {}
    for index, (row, reason) in enumerate(zip(rows, results)):
        if not reason:
            groups.setdefault(row.key, []).append(index)
    for indices in groups.values():
        texts = [reply_text(rows[index]) for index in indices]
        for index, is_duplicate in zip(indices, mark_duplicates(texts, SHINGLE, SIMILAR), strict=True):
            if is_duplicate:
                results[index] = "duplicate"
    return results
