r"""Read numbers as exact fractions: `1,234`, `$5`, `-2.50`, `3/4`, `\frac{3}{4}`, `3 1/2`, `1e3`, `4.5 \times 10^3`, `10%`, `2.5 million`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rorqual.tasks.units import parse_unit

LONGEST = 200
"""Maximum number of digits of a number. A longer number is not read, because parsing a longer number would take too long."""
SCALES = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12, "k": 10**3,
}  # fmt: skip
SIGNS = str.maketrans({"−": "-", "–": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "×": "x"})
_GROUP = r"(?:,|\{,\}|\\,|\\!|,\\!|[ ])"
_DECIMALS = rf"\.[0-9]{{1,{LONGEST}}}"
_DIGITS = rf"(?:[0-9]{{1,3}}(?:{_GROUP}[0-9]{{3}})+(?![0-9])|[0-9]{{1,{LONGEST}}})(?:{_DECIMALS})?|{_DECIMALS}"
_ARM = r"(?:\{[ ]?-?[0-9]{1,40}[ ]?\}|[0-9])"
NUMBER = re.compile(
    rf"""
    (?<![\w^_]) (?<![0-9]\.) (?P<sign>(?:(?<![\w)\]}}%$.])[-+][ ]?)?) (?:(?:\\?[$]|[£€¥₹])[ ]?)? (?P<late>-?)
    (?: (?:(?P<whole>[0-9]{{1,9}})[ ]?)? \\[dtc]?frac[ ]?(?P<over>{_ARM})[ ]?(?P<under>{_ARM})
    | (?P<plus>[0-9]{{1,9}})[ -](?P<top>[0-9]{{1,9}})/(?P<bottom>[0-9]{{1,9}})
    | (?P<digits>{_DIGITS})
      (?: [eE](?P<e>[-+]?[0-9]{{1,2}})
        | [ ]?(?:\\times|\\cdot|x|\*)[ ]?10[ ]?(?:\^|\*\*)[ ]?\{{?(?P<ten>[-+]?[0-9]{{1,2}})\}}?
        | [ ]?/[ ]?(?P<below>[0-9]{{1,{LONGEST}}})(?![/.]?[0-9])
      )?
    ) (?![0-9_]|\^(?!\{{?[ ]?\\circ))
    (?P<percent>(?:[ ]?\\?%|[ ](?:percent|per[ ]cent)\b)?)
    (?P<scale>(?:k\b|(?:[ ]|-)(?:hundred|thousand|million|billion|trillion|dozen)s?\b)?)
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textrm|mbox|textit|operatorname)\s?\{([^{}]{0,200})\}")
_SPACE = re.compile(r"\\(?:[,;! ]|quad)(?![0-9]{3})|(?<=[0-9}])~")
_NAME = re.compile(r"(?:[A-Za-z]\s?)?=\s?(?=[-+$\\.0-9])")
_UNIT = re.compile(
    r"(?:[ -]|(?=[°^]))?(?:\^?\{?\\circ\}?|°[CF]?|\\degrees?|[€£¥]"
    r"|[A-Za-z]+(?:\^\{?[23]\}?|[²³])?(?:/[A-Za-z]+)?\.?(?: [A-Za-z]+){0,4})"
)
_NO_UNIT = re.compile(
    r"\b(?:or|and|not|no|nor|never|is|isn|was|are|but|if|plus|minus|times|divided|half|less|more|fewer|than|to|too|off|least|most|about"
    r"|up|wrong|incorrect|false|maybe|perhaps|probably|without|except|instead|short|over|under|above|below|squared|cubed|factorial"
    r"|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|tenths|hundredths|thousandths|halves|thirds|fifths|\w+teen|\w+ty)\b",
    re.IGNORECASE,
)
"""Words that change or negate an adjacent number. Words in this list are therefore not units."""


@dataclass(frozen=True)
class Number:
    """An exact number. `unit` is the text after the number, such as "eggs", and `text` is the text from which the number was read."""

    value: Fraction
    percent: bool
    unit: str
    text: str

    def equals(self, other: Number) -> bool:
        """Return whether `self` and `other` are the same number. 50% equals both 1/2 and 50. Known units are converted: 5 km equals 5000 m."""
        mine, others = parse_unit(self.unit), parse_unit(other.unit)
        if mine is not None and others is not None:
            return mine[0] == others[0] and self.value * mine[1] == other.value * others[1]
        if self.percent == other.percent:
            return self.value == other.value
        share, plain = (self, other) if self.percent else (other, self)
        return plain.value == share.value / 100 or (plain.value == share.value and abs(share.value) >= 1)

    def __str__(self) -> str:
        return f"{self.value}{'%' * self.percent}"


def read_number(text: str) -> Number | None:
    """Return `text` as a number with an optional unit. Return None if `text` is not one number, for example `18 or 19`, `not
    18` or `3:30`."""
    text = " ".join(_SPACE.sub(" ", _TEXT.sub(r" \1", text.translate(SIGNS))).split()).strip("$ ").removesuffix(".")
    if name := _NAME.match(text):
        text = text[name.end() :]
    match = NUMBER.match(text)
    if match is None:
        return None
    unit = text[match.end() :].rstrip("$ ")
    number = _number(match, unit.strip(" .-"))
    if unit and (_UNIT.fullmatch(unit) is None or _NO_UNIT.search(unit) or _is_factor(unit)):
        return None
    return number


def _is_factor(unit: str) -> bool:
    """Return whether letters after a number look like a factor (`7x`, `2pi`) instead of a unit."""
    word = unit.strip(" .-")
    return word in ("M", "B") or (word.isalpha() and parse_unit(word) is None and (unit[0].isalpha() or len(word) == 1))


def last_number(text: str) -> Number | None:
    """Return the last number of a text, or None."""
    found = [number for match in NUMBER.finditer(text.translate(SIGNS)) if (number := _number(match)) is not None]
    return found[-1] if found else None


def read_unitless_number(text: str) -> Fraction | None:
    """Return the value of `text` if it is a number without a unit. Return None for a percentage or other text."""
    number = read_number(text)
    return None if number is None or number.percent or number.unit else number.value


def _number(match: re.Match[str], unit: str = "") -> Number | None:
    whole, over, under = (
        match["whole"] or match["plus"],
        match["over"] or match["top"],
        match["under"] or match["bottom"],
    )
    if over is None:
        over, under = re.sub(r"[^0-9.]", "", match["digits"]), match["below"] or "1"
    over, under = over.strip("{} "), under.strip("{} ")
    if int(under) == 0:
        return None
    value = int(whole or 0) + Fraction(over) / int(under)
    value *= Fraction(10) ** int(match["e"] or match["ten"] or 0) * SCALES.get(
        match["scale"].strip(" -").lower().removesuffix("s"), 1
    )
    negative = "-" in match["sign"] + match["late"]
    return Number(-value if negative else value, bool(match["percent"]), unit, match[0].strip())
