"""Filters of a teacher's samples: pure functions of text, each with a name that stands in the column `dropped`."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from rorqual.data.distilled import Distilled
from rorqual.distil.config import FilterConfig, Keep

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|[^\w\s]|_")
"""A word of letters and digits, a single sign, or a single character of the scripts that put no space between words."""
FEW_LINES = 4
"""Below that many lines, a line that stands twice says nothing."""


def words(text: str) -> list[str]:
    """The words and signs of `text`, case folded."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def is_too_long_or_short(tokens: int, cut_off: bool, filters: FilterConfig) -> bool:
    """Whether a sample was cut off, or has fewer than `shortest` or more than `longest` tokens (0: no limit)."""
    return cut_off or tokens < filters.shortest or (filters.longest > 0 and tokens > filters.longest)


def repeated_share(text: str, ngram: int) -> float:
    """The share, 0 to 1, of the words that lie in an n-gram which was there before; or of the lines, where that is more."""
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
    """The script of a letter by its Unicode name, `LATIN` or `CJK`; Japanese and Korean count with the Chinese characters they use."""
    name = unicodedata.name(letter, "UNKNOWN").replace("-", " ").split()[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA", "HANGUL", "IDEOGRAPHIC") else name


def foreign_share(text: str) -> float:
    """The share, 0 to 1, of letters that are not in the script in which most letters are."""
    letters = Counter(script(c) for c in unicodedata.normalize("NFKC", text) if c.isalpha())
    return 1 - letters.most_common(1)[0][1] / letters.total() if letters else 0.0


def shingles(text: str, size: int) -> frozenset[tuple[str, ...]]:
    """The sequences of `size` words in `text`; of a shorter text, the whole."""
    found = words(text)
    return frozenset(tuple(found[i : i + size]) for i in range(max(1, len(found) - size + 1)))


def jaccard(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    """Common elements over all elements, 0 to 1; two empty sets are the same."""
    union = len(one | other)
    return len(one & other) / union if union else 1.0


def duplicates(texts: Sequence[str], shingle: int, similar: float) -> list[bool]:
    """For each text, whether an earlier one that is no duplicate itself is the same, or shares at least `similar` of its shingles.

    Exact, for a problem has few samples: no hashing, no sketch, and so no chance.
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
    """What the teacher wrote: its reasoning and its answer."""
    reply = row.messages[-1]
    return f"{reply.reasoning or ''}\n{reply.text}".strip("\n")


def verdict_filter(verdict: str, keep: Keep) -> str:
    """`wrong` or `ungraded` where `keep` leaves such a verdict out, else ""."""
    out = {"right": ("wrong", "ungraded"), "graded": ("ungraded",), "all": ()}[keep]
    return verdict if verdict in out else ""


def reason_alone(row: Distilled, cut_off: bool, contaminated: bool, filters: FilterConfig, keep: Keep) -> str:
    """The first reason to drop a sample that lies in itself; "" where there is none. Duplicates need its neighbours."""
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
    """Why each row is dropped, "" where it is kept. Duplicates are looked for among those of one problem that nothing else drops.

    `failed`: rows that are no answer, dropped as `error` whatever `filters` and `keep` say; empty: none is.
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
