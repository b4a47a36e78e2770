"""Filters of a teacher's samples: pure functions of text. The name of the filter is stored in the column `dropped`."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from rorqual.data.distilled import Distilled
from rorqual.factory.config import FilterConfig, Keep

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|[^\w\s]|_")
"""A word of letters and digits, a single sign, or a single character of a script without spaces."""
FEW_LINES = 4
"""Minimum number of lines for the repeated-line test."""


def words(text: str) -> list[str]:
    """Return the words and signs of `text`, case-folded."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def is_too_long_or_short(tokens: int, cut_off: bool, filters: FilterConfig) -> bool:
    """Return whether a sample was cut off, or has fewer than `shortest` or more than `longest` tokens (0: no limit)."""
    return cut_off or tokens < filters.shortest or (filters.longest > 0 and tokens > filters.longest)


def repeated_share(text: str, ngram: int) -> float:
    """Return the share of words inside an n-gram that occurred before, or the share of repeated lines if larger."""
    found = words(text)
    seen: set[tuple[str, ...]] = set()
    covered = [False] * len(found)
    for start in range(len(found) - ngram + 1):
        gram = tuple(found[start : start + ngram])
        if gram in seen:
            covered[start : start + ngram] = [True] * ngram
        seen.add(gram)
    lines = [" ".join(line.split()) for line in text.split("\n") if line.strip()]
    again = len(lines) - len(set(lines)) if len(lines) >= FEW_LINES else 0
    return max(sum(covered) / max(len(found), 1), again / max(len(lines), 1))


@lru_cache(maxsize=4096)
def script(letter: str) -> str:
    """Return the script of a letter by its Unicode name, such as `LATIN`; Japanese and Korean count as `CJK`."""
    name = unicodedata.name(letter, "UNKNOWN").replace("-", " ").split()[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA", "HANGUL", "IDEOGRAPHIC") else name


def foreign_share(text: str) -> float:
    """Return the share, 0 to 1, of letters outside the most frequent script."""
    letters = Counter(script(c) for c in unicodedata.normalize("NFKC", text) if c.isalpha())
    return 1 - letters.most_common(1)[0][1] / letters.total() if letters else 0.0


def shingles(text: str, size: int) -> frozenset[tuple[str, ...]]:
    """Return the sequences of `size` words in `text`; for a shorter text, the whole text."""
    found = words(text)
    return frozenset(tuple(found[i : i + size]) for i in range(max(1, len(found) - size + 1)))


def jaccard(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    """Return the Jaccard similarity, 0 to 1; two empty sets have similarity 1."""
    union = len(one | other)
    return len(one & other) / union if union else 1.0


def duplicates(texts: Sequence[str], shingle: int, similar: float) -> list[bool]:
    """Return, for each text, whether it duplicates an earlier text that is not a duplicate itself.

    A duplicate is identical or shares at least `similar` of its shingles. The comparison is exact, without hashing or
    sketches, because a problem has few samples.
    """
    kept: list[tuple[str, frozenset[tuple[str, ...]]]] = []
    found: list[bool] = []
    for text in texts:
        mine = shingles(text, shingle)
        again = any(text == other or jaccard(mine, its) >= similar for other, its in kept)
        found.append(again)
        if not again:
            kept.append((text, mine))
    return found


def said(row: Distilled) -> str:
    """Return the teacher's text: its reasoning and its answer."""
    reply = row.messages[-1]
    return f"{reply.reasoning or ''}\n{reply.text}".strip("\n")


def verdict_filter(verdict: str, keep: Keep) -> str:
    """Return `wrong` or `ungraded` if `keep` excludes such a verdict, else ""."""
    out = {"right": ("wrong", "ungraded"), "graded": ("ungraded",), "all": ()}[keep]
    return verdict if verdict in out else ""


def reason_alone(row: Distilled, cut_off: bool, contaminated: bool, filters: FilterConfig, keep: Keep) -> str:
    """Return the first reason to drop a sample by itself, else ""; duplicates need the other samples."""
    text = said(row)
    on = set(filters.names)
    if "length" in on and is_too_long_or_short(row.completion_tokens, cut_off, filters):
        return "length"
    if out := verdict_filter(row.verdict, keep):
        return out
    if "repetition" in on and repeated_share(text, filters.ngram) > filters.repeated:
        return "repetition"
    if "language" in on and foreign_share(text) > filters.foreign:
        return "language"
    return "contaminated" if "contaminated" in on and contaminated else ""


def reasons(
    rows: Sequence[Distilled],
    cut_off: Sequence[bool],
    contaminated: Sequence[bool],
    filters: FilterConfig,
    keep: Keep,
    failed: Sequence[bool] = (),
) -> list[str]:
    """Return why each row is dropped, or "" if it is kept. Duplicates are searched among a problem's otherwise kept rows.

    Rows in `failed` have no answer. They are dropped as `error` regardless of `filters` and `keep`. An empty `failed`
    means none.
    """
    found = [
        "error" if bad else reason_alone(row, cut, met, filters, keep)
        for row, cut, met, bad in zip(rows, cut_off, contaminated, failed or [False] * len(rows), strict=True)
    ]
    if "duplicate" not in filters.names:
        return found
    groups: dict[str, list[int]] = {}
    for place, (row, reason) in enumerate(zip(rows, found)):
        if not reason:
            groups.setdefault(row.key, []).append(place)
    for places in groups.values():
        texts = [said(rows[place]) for place in places]
        for place, again in zip(places, duplicates(texts, filters.shingle, filters.similar), strict=True):
            if again:
                found[place] = "duplicate"
    return found
