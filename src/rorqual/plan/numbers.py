"""Parse amounts such as `14.8T`, and format amounts such as `$5.58M`, `54 days` and `71.2 GB`."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator

WRITTEN = re.compile(r"([-+]?[0-9][0-9_,]*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)\s*([kKmMgGbBtT]?)i?")
POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "b": 3, "t": 4}


def parse_amount(text: Any, *, thousand: int = 1000) -> float:
    """Parse an amount such as `14.8T`, `2.788M`, `4k`, `1_000` or `3e8`. The suffixes `B` and `G` both mean 10^9. Raises
    ValueError if `text` is not an amount."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        return float(text)
    match = WRITTEN.fullmatch(str(text).strip())
    if match is None:
        raise ValueError("write a number such as 300, 4k, 2.788M, 1.5B or 14.8T")
    digits, suffix = match.groups()
    return float(digits.replace(",", "").replace("_", "")) * thousand ** POWERS[suffix.lower()]


def _parse_integer(text: Any, *, thousand: int = 1000) -> int:
    value = parse_amount(text, thousand=thousand)
    if abs(value - round(value)) > 1e-6 * max(1.0, abs(value)):
        raise ValueError(f"{text} is not an integer")
    return round(value)


Amount = Annotated[float, BeforeValidator(parse_amount)]
"""A number with an optional decimal suffix, such as `14.8T`."""
Count = Annotated[int, BeforeValidator(_parse_integer)]
"""An integer with an optional decimal suffix, such as `4k`."""
Positions = Annotated[int, BeforeValidator(partial(_parse_integer, thousand=1024))]
"""A context length with an optional binary suffix: `4k` is 4,096, as is usual for context lengths."""


def format_short(value: float) -> str:
    """Format a number with a decimal suffix and at most four digits: `14800000000000` becomes `14.8T`."""
    for power, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power * 0.99995:
            return f"{value / power:.4g}{unit}"
    return f"{value:.4g}"


def format_flops(value: float) -> str:
    """Format FLOPs in scientific notation."""
    return f"{value:.3e} FLOPs"


def format_usd(value: float) -> str:
    """Format an amount in USD: `$0.28`, `$87,072` or, for millions and billions, `$5.576M`."""
    for power, unit in ((1e9, "B"), (1e6, "M")):
        if abs(value) >= power * 0.99995:
            return f"${value / power:,.3f}{unit}"
    if abs(value) >= 1000:
        return f"${value:,.0f}"
    return f"${value:,.2f}" if abs(value) >= 1 else f"${value:.4g}"


def format_duration(seconds: float) -> str:
    """Format a duration, such as `54.2 days`. The unit is the largest unit in which the duration is at least 2."""
    for size, unit in ((365.25 * 86400, "years"), (86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} seconds" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def format_bytes(size: float) -> str:
    """Format a number of bytes in decimal units (1 GB = 10^9 bytes), as in data sheets of devices."""
    for power, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(size) >= power:
            return f"{size / power:,.3g} {unit}" if abs(size) < power * 100 else f"{size / power:,.0f} {unit}"
    return f"{size:,.0f} bytes"
