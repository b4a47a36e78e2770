"""Units of time, money, length, area, weight and volume."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS: dict[str, tuple[str, int | Fraction]] = {
    "h": ("s", 3600), "hr": ("s", 3600), "in": ("in", 1), "ft": ("in", 12), "lb": ("oz", 16),
    "second": ("s", 1), "minute": ("s", 60), "min": ("s", 60), "hour": ("s", 3600), "day": ("s", 86400), "week": ("s", 604800),
    "cent": ("$", Fraction(1, 100)), "dollar": ("$", 1), "$": ("$", 1), "mm": ("m", Fraction(1, 1000)), "cm": ("m", Fraction(1, 100)),
    "centimeter": ("m", Fraction(1, 100)), "m": ("m", 1), "meter": ("m", 1), "metre": ("m", 1), "km": ("m", 1000),
    "kilometer": ("m", 1000), "kilometre": ("m", 1000), "inch": ("in", 1), "inche": ("in", 1), "foot": ("in", 12), "feet": ("in", 12),
    "yard": ("in", 36), "mile": ("in", 63360), "g": ("g", 1), "gram": ("g", 1), "kg": ("g", 1000), "kilogram": ("g", 1000),
    "tonne": ("g", 10**6), "ounce": ("oz", 1), "pound": ("oz", 16), "ml": ("l", Fraction(1, 1000)), "milliliter": ("l", Fraction(1, 1000)),
    "l": ("l", 1), "liter": ("l", 1),
    "litre": ("l", 1), "month": ("mo", 1), "year": ("mo", 12), "cup": ("c", 1), "pint": ("c", 2), "quart": ("c", 4),
    "gallon": ("c", 16),
}  # fmt: skip


_POWER = re.compile(r"(square |sq\.? |cubic )?([A-Za-z]+)(?:\^\{?([23])\}?|([²³]))?")
_POWERS = {"square ": 2, "sq ": 2, "sq. ": 2, "cubic ": 3, "2": 2, "3": 3, "²": 2, "³": 3}


def parse_unit(words: str) -> tuple[str, Fraction] | None:
    """Return the base unit of `words` with its power, such as "m^1" or "m^2", and the size of the unit `words` in base units.
    Return None for an unknown unit."""
    match = _POWER.fullmatch(words.lower())
    known = match and (_UNITS.get(match[2]) or _UNITS.get(match[2].removesuffix("s")))
    if not match or not known:
        return None
    power = _POWERS.get(match[1] or match[3] or match[4] or "", 1)
    return f"{known[0]}^{power}", Fraction(known[1]) ** power
