r"""Convert inequalities in one variable to intervals: `2 \le x < 5` is `[2, 5)`, and `x < 2, x > 3` is a union."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ORDER = r"(?P<{0}><=|>=|<|>|\\leq?slant(?![a-z])|\\geq?slant(?![a-z])|\\leq?(?![a-z])|\\geq?(?![a-z])|\\lt(?![a-z])|\\gt(?![a-z]))"
_LETTER = r"[a-z](?:\([a-z]\))?"
_TERM = r"[^<>=,]{1,80}?"
_BETWEEN = re.compile(
    rf"(?P<low>{_TERM})\s*{_ORDER.format('one')}\s*{_LETTER}\s*{_ORDER.format('other')}\s*(?P<high>{_TERM})"
)
_BOUND = re.compile(rf"{_LETTER}\s*{_ORDER.format('one')}\s*(?P<bound>{_TERM})")
_SIGN = r" ?(?:<=|>=|<|>|≤|≥) ?"
_END = r"-?[0-9a-z√π∞./]{1,20}"
_PLAIN = re.compile(rf"(?<![\w$\\])(?:{_END}{_SIGN})?[a-z]{_SIGN}{_END}(?:,? (?:and|or) [a-z]{_SIGN}{_END})*$")
_INCLUSIVE = re.compile(rf"\b(?:from|between) ({_END}) (?:to|and) ({_END}),? \(?inclusive\)?$")
_THAN = re.compile(rf"\b[a-z] (?:is )?(greater|larger|more|less|smaller) than( or equal to)? ({_END})$")
_SET = re.compile(r"\\\{\s*[a-z]\s*(?:\\in[^:|]{0,40})?(?::|\||\\mid)\s*(.{1,200})\\\}")


def inequality(text: str) -> str | None:
    """Return the inequality at the end of plain `text` (`x > 3`, `-1 < x ≤ 5`, `from -1 to 5, inclusive`), or None."""
    if match := _INCLUSIVE.search(text[-100:].rstrip(". ")):
        return f"{match[1]} <= x <= {match[2]}"
    if match := _THAN.search(text[-100:].rstrip(". ")):
        return f"x {'<' if match[1] in ('less', 'smaller') else '>'}{'=' if match[2] else ''} {match[3]}"
    match = _PLAIN.search(text[-100:].rstrip(". "))
    return match[0].replace("≤", "<=").replace("≥", ">=") if match else None


def interval(text: str) -> str | None:
    """Return the interval of one inequality, or None if `text` is not an inequality."""
    if match := _BETWEEN.fullmatch(text.strip()):
        up, further = _upwards(match["one"]), _upwards(match["other"])
        if up != further:
            return None
        ends = (match["low"], match["high"]) if up else (match["high"], match["low"])
        closed = (_closed(match["one"]), _closed(match["other"]))[:: 1 if up else -1]
        return f"{'(['[closed[0]]}{ends[0].strip()}, {ends[1].strip()}{')]'[closed[1]]}"
    if match := _BOUND.fullmatch(text.strip()):
        bound, closed_end = match["bound"].strip(), _closed(match["one"])
        if _upwards(match["one"]):
            return f"(-\\infty, {bound}{')]'[closed_end]}"
        return f"{'(['[closed_end]}{bound}, \\infty)"
    return None


def set_condition(text: str) -> str:
    r"""Return the condition of a set: `x > 3` for `\{x : x > 3\}`. Return `text` unchanged if it is not a set."""
    match = _SET.fullmatch(text.strip())
    return match[1] if match else text


def union(items: Sequence[str]) -> str | None:
    r"""Convert each inequality to an interval and join the intervals by `\cup`. Return None if an item is not an
    inequality."""
    intervals = [interval(item) for item in items]
    return (
        None
        if None in intervals or not intervals
        else " \\cup ".join(item_interval for item_interval in intervals if item_interval is not None)
    )


def _upwards(order: str) -> bool:
    return order[0] == "<" or order.startswith("\\l")


def _closed(order: str) -> bool:
    return "=" in order or "e" in order
