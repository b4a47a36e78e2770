"""Compare every measured figure of README and of every page in docs with its result file.

    python scripts/figures.py            # print one line for each problem
    python scripts/figures.py --write    # write the results' values into the pages, with the same number of digits

docs/figures.json lists passages of each page. In a passage every number is a `#`, and white space counts as one blank. Each `#` has
a source, a string:

    docs/results/x.json#/path/to/value        the value
    docs/results/x.json#/path/to/value *100   a share in percent or points (or * any factor)
    max docs/results/x.json#/path             the maximum of a list; also min, mean, median, sum, and count for its length
    max docs/.../*/value / docs/.../*/other   the maximum of the items' ratios; `*` stands for every item of a list or an object
    ... / docs/results/y.json#/path           the first divided by the second; - subtracts it
    -docs/results/x.json#/path                the negated value
    ... ~2                                    the third number in a text, such as a finding's sentence
    !theirs                                   a figure from another source, cited on the page
    !setting                                  a chosen setting
    !inspect                                  arithmetic that `rorqual inspect` or `plan` prints and tests check
    !not-kept                                 a measurement without a result file, which the page or docs/LOG.md says
    !bare                                     an integer that is not checked

In a path, `family=swap&level=all` selects the list item with these fields, and `1:6` a part of a list. For an object with `by_seed`
pairs, `student/low` and `student/high` are the ends of Student's 99 % interval over the seeds.

A number is a measured figure if it has a decimal point, a sign or a unit, is part of an interval in brackets or of a share such as
"one in eighteen". The units are %, points, times, nats, bits, GB, minutes, core-seconds, core-minutes and their Chinese forms. Number
words count beside a unit or in a share. Code (but not its comments), links, arXiv numbers, versions, and the 95 or 99 % of an interval
are exempt. Bare integers (seeds, steps, problems, years) are checked only inside a listed passage.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from operator import sub, truediv
from pathlib import Path
from typing import Any

from rorqual.evals.stats import t_interval

ROOT = Path(__file__).parent.parent
LIST = "docs/figures.json"
TRANSLATED = ("docs/explanation/claims.zh.md",)  # tests/laws/test_translation.py compares them with their English pages
KINDS = ("!theirs", "!setting", "!inspect", "!not-kept", "!bare")
HIDDEN = re.compile(
    r"```.*?```|^ {4}(?![-*|]).*?$|`[^`\n]*`|\]\([^)\n]*\)|!\[[^\]]*\]|<!--.*?-->|^#.*?$|\d{4}\.\d{5}|Python \d\.\d+",
    re.S | re.M,
)
COMMENT = re.compile(r"(?<=  )# .*")
WORDS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty"""
WORTH = {word: n for n, word in enumerate(WORDS.split())} | {"thirty": 30, "forty": 40, "fifty": 50}
WORTH |= {word: n for n, word in enumerate("零一二三四五六七八九十")} | {"两": 2, "十八": 18}
COUNTED = "|".join(sorted(WORTH, key=len, reverse=True))
NUMBER = re.compile(
    r"(?<![\w.§/-])(?<!\d:)[+\-−]?\d+(?:,\d{3})*(?:\.\d+)?(?:e\d+)?(?=[BMKT]\b|(?!\w|:\d|\.\d))"
    rf"|\b(?:{COUNTED})(?=\s(?:minutes?|points?|times|percent)\b|\sin\s(?:{COUNTED})\b)|(?<=\bone\sin\s)(?:{COUNTED})\b"
    rf"|(?:{COUNTED})(?=分钟|个百分点|倍|分之)|(?<=分之)(?:{COUNTED})",
    re.A | re.I,
)
UNITS = (
    r"\s?(?:%|points?\b|times\b|nats\b|bits\b|[KMGT]i?B\b|(?:core-)?minutes?\b|core-seconds?\b|个百分点|分钟|倍|核心)"
)
UNIT = re.compile(rf"{UNITS}|(?:,| to| and| 至)\s[+\-−]?[\d.]+{UNITS}|, [+\-−]?[\d.]+\]")
CLOSING = re.compile(r"\[[+\-−]?[\d.]+, $")
SHARE = re.compile(r"\s+of\s+\d")
LEVEL = re.compile(r"(?:95|99) %\s+(?:one-sided |置信)?(?:bounds|intervals?|区间)")
SOURCE = re.compile(
    r"(?:(?P<of>min|max|mean|median|sum|count) )?(?P<turned>-)?(?P<file>docs/results/[\w./-]+\.json)#(?P<path>/.+?)"
    r"(?: ~(?P<nth>\d+))?(?: \*(?P<times>[\d.e-]+))?$"
)
AGGREGATES = {"min": min, "max": max, "mean": statistics.fmean, "median": statistics.median, "sum": sum}
RATIOS = re.compile(r"(\w+) (docs/results/[\w./-]+\.json)#(/\S.*\*.*) / (docs/results/[\w./-]+\.json)#(/.*\*.*)")


@dataclass(frozen=True)
class Number:
    """A number on a page: its position, its text, and whether it is a measured figure."""

    start: int
    end: int
    text: str
    measured: bool


def numbers(page: str) -> list[Number]:
    """Return every number outside the exempt parts."""
    clean = HIDDEN.sub(_hidden, page)
    levels = {found.start() for found in LEVEL.finditer(clean)}
    return [
        Number(
            found.start(),
            found.end(),
            found.group(),
            found.start() not in levels
            and (
                found.group().lower() in WORTH
                or "." in found.group()
                or found.group()[0] in "+-−"
                or bool(UNIT.match(clean, found.end()) or SHARE.match(clean, found.end()))
                or bool(CLOSING.search(clean, 0, found.start()) and clean[found.end() : found.end() + 1] == "]")
            ),
        )
        for found in NUMBER.finditer(clean)
    ]


def _hidden(found: re.Match[str]) -> str:
    """Replace an exempt part by zeros of the same length; the comments of a code block stay."""
    text, shown = found.group(), set[int]()
    if text.startswith("```"):
        shown = {place for comment in COMMENT.finditer(text) for place in range(*comment.span())}
    return "".join(c if c == "\n" or place in shown else "\0" for place, c in enumerate(text))


@lru_cache(maxsize=2)
def template(page: str) -> tuple[str, list[int]]:
    """Return the page with `#` for each number and single blanks, and the positions of the `#`s in the order of the numbers."""
    parts, last = [], 0
    for one in numbers(page):
        parts += [page[last : one.start].replace("#", "\1"), "#"]
        last = one.end
    text = re.sub(r"\s+", " ", "".join([*parts, page[last:].replace("#", "\1")]))
    return text, [place for place, mark in enumerate(text) if mark == "#"]


def places(page: str, stretch: str) -> list[int] | str:
    """Return the indices of the page's numbers for the `#`s of a passage, or an error text."""
    text, marks = template(page)
    wanted = stretch.replace("\\#", "\1")
    if text.count(wanted) != 1:
        return f"occurs {text.count(wanted)} times"
    start = text.index(wanted)
    return [order for order, mark in enumerate(marks) if start <= mark < start + len(wanted)]


def pages(root: Path = ROOT) -> list[str]:
    """Return the paths of README, in both languages, and of every page in docs except translations."""
    found = sorted(path.relative_to(root).as_posix() for path in (root / "docs").rglob("*.md"))
    return ["README.md", "README.zh.md", *(name for name in found if name not in TRANSLATED)]


@cache
def result(root: Path, file: str) -> Any:
    """Load a result file."""
    return json.loads((root / file).read_bytes())


def walk(value: Any, path: str, file: str) -> Any:
    """Return the value at a path. Raises LookupError if there is none."""
    keys = path.strip("/").split("/")
    while keys:
        if keys[0] == "*":
            rest = "/".join(keys[1:])
            return [
                walk(item, rest, file) if rest else item
                for item in (value.values() if isinstance(value, dict) else value)
            ]
        if isinstance(value, dict) and keys[0] == "student" and "by_seed" in value:
            interval = t_interval([b - a for a, b in value["by_seed"]], 0.99)
            return {"low": interval.low, "high": interval.high}[keys[1]]
        if isinstance(value, list):
            value = _item(value, keys.pop(0))
            continue
        key = next((k for n in range(len(keys), 0, -1) if (k := "/".join(keys[:n])) in value), None)
        if key is None:
            raise LookupError(f"{file} has no '{keys[0]}' at {path}")
        value, keys = value[key], keys[key.count("/") + 1 :]
    return value


def _item(items: list[Any], key: str) -> Any:
    """Return an item by index, a slice, or the first item with fields like `family=swap&level=all`."""
    if ":" in key and "=" not in key:
        first, last = key.split(":")
        return items[int(first) : int(last)]
    if "=" not in key:
        return items[int(key)]
    wanted = [pair.partition("=") for pair in key.split("&")]
    found = next((item for item in items if all(str(item.get(name)) == value for name, _, value in wanted)), None)
    if found is None:
        raise LookupError(f"no item with {key}")
    return found


def worth(root: Path, source: str) -> float:
    """Return the number that a source describes. Raises LookupError or ValueError for an invalid source."""
    if found := RATIOS.fullmatch(source):
        above, below = (walk(result(root, file), path, file) for file, path in (found.group(2, 3), found.group(4, 5)))
        return float(AGGREGATES[found[1]]([a / b for a, b in zip(above, below, strict=True)]))
    for sign, apply in (("/", truediv), ("-", sub)):
        parts = re.split(rf" {sign} (?=(?:\w+ )?-?docs/results/)", source)  # a key may contain the sign, too
        if len(parts) == 2:
            return float(apply(worth(root, parts[0]), worth(root, parts[1])))
    found = SOURCE.fullmatch(source)
    if found is None:
        raise ValueError(f"not a valid source: {source}")
    value = walk(result(root, found["file"]), found["path"], found["file"])
    if found["nth"]:
        value = NUMBER.findall(value)[int(found["nth"])].replace("%", "")
    if found["of"] == "count":
        return float(len(value))
    if found["of"]:
        value = AGGREGATES[found["of"]](list(map(_plain, value)))
    return _plain(value) * float(found["times"] or 1) * (-1 if found["turned"] else 1)


def _plain(value: Any) -> float:
    """Convert a number, or a table cell with one, to a float."""
    return float(value.rstrip(" %*").replace(",", "")) if isinstance(value, str) else float(value)


def printed(value: float, like: str) -> str:
    """Format a value with the digits and the sign style of the figure `like`."""
    digits = len(like.partition(".")[2])
    text = f"{value:,.{digits}f}"
    text = text if "," in like or "," not in text else text.replace(",", "")
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    if like[0] == "+" and text[0] != "-":
        text = f"+{text}"
    return text.replace("-", "−") if "−" in like else text


def fits(value: float, figure: str) -> bool:
    """Return whether the figure is the rounded value. A value halfway may round either way."""
    digits = len(figure.partition(".")[2])
    stated = WORTH.get(figure.lower())
    return (
        abs((float(figure.replace(",", "").replace("−", "-")) if stated is None else stated) - value)
        <= 0.5 * 10**-digits + 1e-6
    )


def problems(root: Path = ROOT) -> Iterator[str]:
    """Yield the problems: a missing passage, a figure with another value, a measured figure without a source."""
    listed = json.loads((root / LIST).read_bytes())
    for name in pages(root):
        page = (root / name).read_text(encoding="utf-8")
        found, covered = numbers(page), set()
        for stretch, sources in listed.get(name, []):
            where = places(page, stretch)
            if isinstance(where, str) or len(where) != len(sources):
                told = where if isinstance(where, str) else f"has {len(where)} numbers and {len(sources)} sources"
                yield f"{name}: the passage '{stretch}' {told}. Fix {LIST}."
                continue
            for place, source in zip(where, sources, strict=True):
                covered.add(place)
                if source not in KINDS and (told := _differs(root, found[place].text, source)):
                    yield f"{name}, line {page.count(chr(10), 0, found[place].start) + 1}: {told}"
        for place, one in enumerate(found):
            if one.measured and place not in covered:
                line = page.count("\n", 0, one.start) + 1
                around = " ".join(page[max(0, one.start - 40) : one.end + 20].split())
                yield f"{name}, line {line}: '{one.text}' has no source ({around}). Give it one in {LIST}."


def _differs(root: Path, figure: str, source: str) -> str:
    try:
        value = worth(root, source)
    except (LookupError, ValueError, OSError) as error:
        return f"'{figure}': {error}"
    return "" if fits(value, figure) else f"'{figure}' should be {printed(value, figure)}, by {source}"


def rewritten(root: Path, name: str) -> str:
    """Return the page with each listed figure set to its result's value."""
    page = (root / name).read_text(encoding="utf-8")
    found, right = numbers(page), {}
    for stretch, sources in json.loads((root / LIST).read_bytes()).get(name, []):
        where = places(page, stretch)
        if isinstance(where, list):
            pairs = zip(where, sources, strict=True)
            values = {place: worth(root, source) for place, source in pairs if source not in KINDS}
            right |= {p: printed(v, found[p].text) for p, v in values.items() if not fits(v, found[p].text)}
    for place in sorted(right, reverse=True):
        page = page[: found[place].start] + right[place] + page[found[place].end :]
    return page


def main() -> int:
    if sys.argv[1:] == ["--write"]:
        for name in pages():
            (ROOT / name).write_text(rewritten(ROOT, name), encoding="utf-8")
    found = list(problems())
    print("\n".join(found) or "every figure matches its result file")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
