r"""Read numbers in a base: `315_8`, `315_{\text{eight}}`, `315 in base 8`, `315 (base eight)`, `in octal it is 315`."""

from __future__ import annotations

import re

from rorqual.tasks.numbers import LONGEST, ONES

BASES = {**ONES, "sixteen": 16, "binary": 2, "octal": 8, "hexadecimal": 16}
_NUMBER = re.compile(
    r"\\?(?:text)?\{?([0-9A-Fa-f]+(?:\.[0-9A-F]+)?)\}?_\{?\s?(?:\\text\{)?\s?(\w+)\s?\}{0,2}", re.IGNORECASE
)
_BASE = (
    rf"(?:base[ -]\$?(?P<base>[0-9]{{1,2}}\b|(?:{'|'.join(ONES)}|sixteen)\b)\$?|(?P<name>binary|octal|hexadecimal)\b)"
)
_AFTER = re.compile(
    rf"\*{{0,2}}\$?\b(?P<digits>[0-9][0-9A-F]*)\$?\*{{0,2}},? ?\(?(?:in )?{_BASE}\)?\*{{0,2}}(?! (?:is|equals|=|becomes))",
    re.IGNORECASE,
)
_FIRST = re.compile(
    rf"(?P<start>\b{_BASE}[^.\n0-9]{{0,40}}(?:\b(?:is|equals|as|becomes)|="
    rf"|:)\s*)\*{{0,2}}\$?(?P<digits>[0-9][0-9A-F]*)\b\$?\*{{0,2}}(?![_(]| \()",
    re.IGNORECASE,
)


def base_of(text: str) -> tuple[str, str] | None:
    """Return the digits and the base of a number that names its base, or None for any other text."""
    match = _NUMBER.fullmatch(text.replace(" ", ""))
    return None if match is None else (match[1].upper(), str(BASES.get(match[2].lower(), match[2])))


def value_of(text: str) -> int | None:
    """Return the value of a number that names its base. Return None for any other text, and for a number with an
    invalid digit."""
    number = base_of(text)
    if number is None or not number[1].isdecimal() or not 2 <= int(number[1]) <= 16:
        return None
    digits = [int(digit, 16) for digit in number[0] if digit != "."]
    fits = max(digits) < int(number[1]) and len(digits) == len(number[0]) < LONGEST
    return int(number[0], int(number[1])) if fits else None


def in_base(text: str) -> str:
    """Rewrite each number whose base is named in words (`315 in base 8`) as `315_{8}`."""
    text = _AFTER.sub(_with_base, text)
    return _FIRST.sub(lambda match: match["start"] + _with_base(match), text)


def _with_base(match: re.Match[str]) -> str:
    base = (match["base"] or match["name"]).lower()
    return f"{match['digits']}_{{{BASES.get(base, base)}}}"
