"""Rewrite numeric bounds in JSON schemas for llguidance. llguidance computes in float64 and writes numbers without
exponents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from typing import Any, TypeGuard

from rorqual.core.errors import DataError

BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
DIGITS, FINEST, WHOLE, LARGEST = 15, Decimal("1e-60"), 2**53 - 1, 2**63
"""Limits of a bound that llguidance can enforce: number of digits, smallest magnitude, largest exact integer, largest
magnitude.

If a bound had more than `DIGITS` digits, llguidance would get the last digit wrong. If the magnitude of a bound were
below `FINEST` or above `LARGEST`, llguidance could not build an expression. Integers up to 2^53 - 1 are exact. The
largest and the smallest 64-bit integer are exact, too.
"""
STEP = Decimal("1e-9")
"""Distance by which an exclusive integer bound is moved, so that an inclusive bound can replace it.

A bound is moved if the two bounds of a number are less than 1 apart. In this case, llguidance would allow the value
that an exclusive bound excludes.
"""
MOST_COEFFICIENT = 2**32 - 1


@dataclass(frozen=True)
class Numbers:
    """The result of `rewritten`: the number keywords of a subschema, rewritten for llguidance."""

    keys: dict[str, Any]
    """Keywords that llguidance enforces."""
    steps: tuple[Any, ...] = ()
    """Alternative values of `multipleOf`: a number must be a multiple of at least one of these values."""
    checked: tuple[str, ...] = ()
    """Keywords that llguidance cannot enforce. Finished answers are validated against these keywords."""
    none: bool = False
    """Whether no number is within the bounds."""


@dataclass(frozen=True)
class _Bound:
    value: Decimal
    open: bool
    keyword: str


def number(value: Any) -> TypeGuard[int | float]:
    """Return whether a value is a JSON number. Booleans are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def exact(value: Any) -> bool:
    """Return whether llguidance can reproduce a number to its last digit. True for a value that is not a number."""
    if not number(value) or value in (0, LARGEST - 1, -LARGEST):
        return True
    if isinstance(value, int):
        return abs(value) <= WHOLE
    if not FINEST <= abs(Decimal(repr(value))) <= LARGEST:
        return False
    return len(Decimal(repr(value)).normalize().as_tuple().digits) <= DIGITS


def rewritten(part: dict[str, Any], integer: bool) -> Numbers:
    """Rewrite the number keywords of a subschema. With `integer`, only integers are allowed."""
    low, high = _bound(part, "minimum", "exclusiveMinimum", 1), _bound(part, "maximum", "exclusiveMaximum", -1)
    step = _step(part.get("multipleOf"))
    if integer:
        low, high = _whole(low, 1), _whole(high, -1)
        step = None if step is None else Fraction(step.numerator)
        step = None if step == 1 else step
    if _empty(low, high, step):
        return Numbers({}, none=True)
    keys, checked = dict[str, Any](), list[str]()
    for bound, opposite, sign in ((low, high, 1), (high, low, -1)):
        if bound is not None:
            enforced = _enforceable(bound, opposite, sign, integer)
            keys |= enforced
            checked += [] if enforced else [bound.keyword]
    steps = () if step is None else _steps(step)
    return Numbers(keys, steps, (*checked, *(["multipleOf"] if step is not None and not steps else [])))


def _bound(part: dict[str, Any], closed: str, opened: str, sign: int) -> _Bound | None:
    bounds = list[_Bound]()
    least, strict = part.get(closed), part.get(opened)
    if number(least):
        # In draft 4, `exclusiveMinimum` and `exclusiveMaximum` are booleans.
        bounds.append(_Bound(Decimal(repr(least)), strict is True, closed))
    if number(strict):
        bounds.append(_Bound(Decimal(repr(strict)), True, opened))
    return max(bounds, key=lambda bound: (sign * bound.value, bound.open), default=None)


def _step(value: Any) -> Fraction | None:
    if not number(value):
        return None
    if value <= 0:
        raise DataError(
            f"'multipleOf' is {value!r}, which is not above 0", remedy="Set multipleOf to a number above 0."
        )
    return Fraction(Decimal(repr(value)))


def _whole(bound: _Bound | None, sign: int) -> _Bound | None:
    """Return the inclusive bound at the nearest integer that `bound` allows."""
    if bound is None:
        return None
    value = Fraction(bound.value)
    last = math.ceil(value) if sign > 0 else math.floor(value)
    return _Bound(Decimal(last + sign * (bound.open and last == value)), False, bound.keyword)


def _empty(low: _Bound | None, high: _Bound | None, step: Fraction | None) -> bool:
    if low is None or high is None:
        return False
    if step is None or max(abs(low.value), abs(high.value)) / Decimal(float(step)) > Decimal("1e30"):
        return low.value > high.value or (low.value == high.value and (low.open or high.open))
    first, last = math.ceil(Fraction(low.value) / step), math.floor(Fraction(high.value) / step)
    first += low.open and first * step == Fraction(low.value)
    last -= high.open and last * step == Fraction(high.value)
    return first > last


def _enforceable(bound: _Bound, opposite: _Bound | None, sign: int, integer: bool) -> dict[str, Any]:
    """Return the bound as a keyword for llguidance, or {} if llguidance cannot enforce the bound.

    A returned keyword never allows more numbers than the schema does.
    """
    value, strict = bound.value, bound.open
    near = opposite is not None and abs(opposite.value - value) < 1
    if strict and near and value == value.to_integral_value() and value * sign >= 0 and not integer:
        value, strict = value + sign * STEP, False
        if opposite is not None and (opposite.value - value) * sign <= 0:
            return {}
    if value and not FINEST <= abs(value) <= LARGEST:
        return {}
    name = ("minimum", "maximum")[sign < 0] if not strict else ("exclusiveMinimum", "exclusiveMaximum")[sign < 0]
    if value == value.to_integral_value():
        return {name: int(value)} if exact(int(value)) else {}
    rounded = Context(DIGITS, ROUND_CEILING if sign > 0 else ROUND_FLOOR).plus(value)
    if opposite is not None and (opposite.value - rounded) * sign < 0:
        return {}
    return {name: float(rounded)}


def _steps(step: Fraction) -> tuple[Any, ...]:
    """Return `step` and its smallest multiple for each smaller number of decimals. Return () if llguidance cannot read
    the step.

    llguidance writes every multiple with as many decimals as the step: 0.50 for 2 * 0.25.
    """
    places = next((count for count in range(18) if (step * 10**count).denominator == 1), None)
    if places is None:
        return ()
    coefficient = int(step * 10**places)
    multiples = list[Any]()
    for count in range(places + 1):
        value = Fraction(math.lcm(coefficient, 10 ** (places - count)), 10**places)
        if value not in multiples and _readable(value):
            multiples.append(value)
    if Fraction(step) not in multiples:
        return ()
    return tuple(int(value) if value.denominator == 1 else float(value) for value in reversed(multiples))


def _readable(value: Fraction) -> bool:
    """Return whether llguidance reads the value exactly.

    llguidance multiplies the float64 value by 10 until the product is an integer.
    """
    moved, places = float(value), 0
    while moved != int(moved) and places < 18:
        moved, places = moved * 10, places + 1
    return moved <= MOST_COEFFICIENT and Fraction(int(moved), 10**places) == value
