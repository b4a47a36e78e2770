"""The claims in English and in Chinese have the same sections, rows, verdicts, numbers, commands and links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_figures import script

PAGES = [Path(__file__).parents[2] / "docs" / "explanation" / name for name in ("claims.md", "claims.zh.md")]
VERDICTS = (
    ("does not hold", "不成立"),
    ("holds", "成立"),
    ("open", "未定"),
    ("wrong", "错误"),
    ("history", "史实"),
)
SCALES = {"M": 1e6, "B": 1e9, "T": 1e12, "million": 1e6, "billion": 1e9, "万": 1e4, "亿": 1e8}
SCALE = re.compile(r"\s?(万|亿|(?:M|B|T|million|billion)(?![A-Za-z]))")
figures = script("scripts", "figures")


def values(text: str) -> list[float]:
    """Return the numbers in digits, without months, sorted. "5.6 million", "5.6M" and "560万" are one value."""
    text = re.sub(r"\d+月", "", text)
    found = [one for one in figures.numbers(text) if one.text.lower() not in figures.WORTH]
    scales = [SCALE.match(text, one.end) for one in found]
    parts = zip(found, scales, strict=True)
    return sorted(round(float(n.text.replace(",", "")) * (SCALES[s[1]] if s else 1), 6) for n, s in parts)


def verdicts(text: str, language: int) -> list[int]:
    """Return the verdicts that a row names, as positions in VERDICTS."""
    text = re.sub(r"`[^`]*`", "", text)
    words = {pair[language]: order for order, pair in enumerate(VERDICTS)}
    return sorted(words[word] for word in re.findall("|".join(sorted(words, key=len, reverse=True)), text))


def links(text: str) -> list[str]:
    """Return the targets of links. An anchor of the page itself is reduced to its number."""
    return sorted(re.sub(r"^(#\d+)-.*", r"\1", target) for target in re.findall(r"\]\(([^)]+)\)", text))


def parts(page: str) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of each table row and of each section's prose."""
    for order, section in enumerate(re.split(r"^## ", page, flags=re.M)):
        rows = re.findall(r"^\|.*", section, re.M)
        yield from ((f"section {order}, row {n}", row) for n, row in enumerate(rows))
        yield f"section {order}", re.sub(r"^\|.*", "", section, flags=re.M)


def differences(english: str, chinese: str) -> Iterator[str]:
    """Yield each difference of two pages, by its section and row."""
    one, other = list(parts(english)), list(parts(chinese))
    if [name for name, _ in one] != [name for name, _ in other]:
        yield "the pages have other sections or rows"
        return
    for (name, a), (_, b) in zip(one, other, strict=True):
        yield from (f"{name}: numbers {x} {y}" for x, y in [(values(a), values(b))] if x != y)
        yield from (f"{name}: links {x} {y}" for x, y in [(links(a), links(b))] if x != y)
        x, y = (sorted(re.findall(r"`+[^`]+`+", text)) for text in (a, b))
        yield from (f"{name}: code {x} {y}" for _ in [0] if x != y)
        x, y = verdicts(a, 0), verdicts(b, 1)
        if name.count("row") and x != y:
            yield f"{name}: verdicts {x} {y}"


def texts() -> list[str]:
    english, chinese = (page.read_text(encoding="utf-8") for page in PAGES)
    return [english.replace("(claims.zh.md)", "()"), chinese.replace("(claims.md)", "()")]


def test_both_pages_say_the_same() -> None:
    assert list(differences(*texts())) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("收入562,027美元", "收入562,072美元", "section 13: numbers"),
        ("278.8万H800卡时，按", "2788万H800卡时，按", "section 11: numbers"),
        ("|错误：那些模型不是R1|", "|成立：那些模型不是R1|", "section 0, row 14: verdicts"),
        ("|激活FLOPs相同（未定）|", "|激活FLOPs相同（成立）|", "section 2, row 2: verdicts"),
        ("lab/nsa.json", "lab/sparse.json", "section 7: links"),
        ("|E3|投资者和媒体的称赞|意见|史实||史实|\n", "", "the pages have other"),
        ("`rorqual lab distil-vs-rl`|未定", "`rorqual lab zero`|未定", "section 0, row 10: code"),
    ],
)
def test_a_change_of_one_page_alone_is_seen(old: str, new: str, told: str) -> None:
    english, chinese = texts()
    assert chinese.count(old) == 1
    found = list(differences(english, chinese.replace(old, new)))
    assert len(found) == 1 and found[0].startswith(told)
