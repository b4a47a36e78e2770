"""Rewrite bounds of numbers in JSON schemas for llguidance, which computes with doubles and writes numbers without
exponents."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from typing import Any, TypeGuard

from rorqual.core.errors import DataError

BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
DIGITS, FINEST, WHOLE, LARGEST = 15, Decimal("1e-60"), 2**53 - 1, 2**63
"""Limits of a bound: number of digits, smallest magnitude, largest exact integer, largest magnitude.

A bound with more digits would be wrong in the last one, and a smaller or larger bound has no expression. Integers are
exact up to 2^53, and the limits of 64 bits happen to be exact, too.
"""
STEP = Decimal("1e-9")
"""Distance that replaces an exclusive bound at a whole number if the other bound is less than 1 away.

There llguidance would allow the bound itself.
"""
MOST_COEFFICIENT = 2**32 - 1


@dataclass(frozen=True)
class Numbers:
    """The result of `rewritten`."""

    keys: dict[str, Any]
    """Keywords that llguidance enforces."""
    steps: tuple[Any, ...] = ()
    """Values for `multipleOf`, of which one must hold."""
    checked: tuple[str, ...] = ()
    """Keywords that are not enforced, so that the answer is checked."""
    none: bool = False
    """Whether no number is within the bounds."""


@dataclass(frozen=True)
class _Bound:
    value: Decimal
    open: bool
    keyword: str


def number(value: Any) -> TypeGuard[int | float]:
    """Return whether a value is a JSON number. Booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def exact(value: Any) -> bool:
    """Return whether a double represents the value to its last written digit. True for a value that is not a number."""
    if not number(value) or value in (0, LARGEST - 1, -LARGEST):
        return True
    if isinstance(value, int):
        return abs(value) <= WHOLE
    if not FINEST <= abs(Decimal(repr(value))) <= LARGEST:
        return False
    return len(Decimal(repr(value)).normalize().as_tuple().digits) <= DIGITS


def rewritten(part: dict[str, Any], integer: bool) -> Numbers:
    """Rewrite the bounds of a part. `integer`: only whole numbers are allowed."""
    low, high = _bound(part, "minimum", "exclusiveMinimum", 1), _bound(part, "maximum", "exclusiveMaximum", -1)
    step = _step(part.get("multipleOf"))
    if integer:
        low, high = _whole(low, 1), _whole(high, -1)
        step = None if step is None else Fraction(step.numerator)
        step = None if step == 1 else step
    if _nothing(low, high, step):
        return Numbers({}, none=True)
    keys, checked = dict[str, Any](), list[str]()
    for one, other, sign in ((low, high, 1), (high, low, -1)):
        if one is not None:
            found = _kept(one, other, sign, integer)
            keys |= found
            checked += [] if found else [one.keyword]
    steps = () if step is None else _steps(step)
    return Numbers(keys, steps, (*checked, *(["multipleOf"] if step is not None and not steps else [])))


def _bound(part: dict[str, Any], closed: str, opened: str, sign: int) -> _Bound | None:
    found = list[_Bound]()
    least, strict = part.get(closed), part.get(opened)
    if number(least):
        found.append(_Bound(Decimal(repr(least)), strict is True, closed))  # draft 4 has a boolean exclusive bound
    if number(strict):
        found.append(_Bound(Decimal(repr(strict)), True, opened))
    return max(found, key=lambda bound: (sign * bound.value, bound.open), default=None)


def _step(value: Any) -> Fraction | None:
    if not number(value):
        return None
    if value <= 0:
        raise DataError(f"'multipleOf' is {value!r}, which is not above 0", remedy="Set it above 0.")
    return Fraction(Decimal(repr(value)))


def _whole(bound: _Bound | None, sign: int) -> _Bound | None:
    """Return the last whole number within the bound, as a closed bound."""
    if bound is None:
        return None
    value = Fraction(bound.value)
    last = math.ceil(value) if sign > 0 else math.floor(value)
    return _Bound(Decimal(last + sign * (bound.open and last == value)), False, bound.keyword)


def _nothing(low: _Bound | None, high: _Bound | None, step: Fraction | None) -> bool:
    if low is None or high is None:
        return False
    if step is None or max(abs(low.value), abs(high.value)) / Decimal(float(step)) > Decimal("1e30"):
        return low.value > high.value or (low.value == high.value and (low.open or high.open))
    first, last = math.ceil(Fraction(low.value) / step), math.floor(Fraction(high.value) / step)
    first += low.open and first * step == Fraction(low.value)
    last -= high.open and last * step == Fraction(high.value)
    return first > last


def _kept(bound: _Bound, other: _Bound | None, sign: int, integer: bool) -> dict[str, Any]:
    """Return the bound as llguidance enforces it, never looser than the schema, or {} if it cannot."""
    value, strict = bound.value, bound.open
    near = other is not None and abs(other.value - value) < 1
    if strict and near and value == value.to_integral_value() and value * sign >= 0 and not integer:
        value, strict = value + sign * STEP, False
        if other is not None and (other.value - value) * sign <= 0:
            return {}
    if value and not FINEST <= abs(value) <= LARGEST:
        return {}
    name = ("minimum", "maximum")[sign < 0] if not strict else ("exclusiveMinimum", "exclusiveMaximum")[sign < 0]
    if value == value.to_integral_value():
        return {name: int(value)} if exact(int(value)) else {}
    rounded = Context(DIGITS, ROUND_CEILING if sign > 0 else ROUND_FLOOR).plus(value)
    if other is not None and (other.value - rounded) * sign < 0:
        return {}
    return {name: float(rounded)}


def _steps(step: Fraction) -> tuple[Any, ...]:
    """Return `step` and its coarser multiples with fewer decimals, or () if llguidance cannot read the step.

    llguidance writes every multiple with as many decimals as the step: 0.50 for 2 * 0.25.
    """
    places = next((count for count in range(18) if (step * 10**count).denominator == 1), None)
    if places is None:
        return ()
    coefficient = int(step * 10**places)
    found = list[Any]()
    for count in range(places + 1):
        value = Fraction(math.lcm(coefficient, 10 ** (places - count)), 10**places)
        if value not in found and _readable(value):
            found.append(value)
    if Fraction(step) not in found:
        return ()
    return tuple(int(value) if value.denominator == 1 else float(value) for value in reversed(found))


def _readable(value: Fraction) -> bool:
    """Return whether llguidance reads the value exactly. It multiplies a double by 10 until it is whole."""
    moved, places = float(value), 0
    while moved != int(moved) and places < 18:
        moved, places = moved * 10, places + 1
    return moved <= MOST_COEFFICIENT and Fraction(int(moved), 10**places) == value
