"""Recover Llama 3.1's RoPE scaling from its frequency divisors, the only part that GGUF stores.

A divisor is 1 / ((1 - k) / factor + k) with k = clamp((w - low) / (high - low), 0, 1). Here w is the number of periods of the
wave in the original context. Doubling the context and both bounds gives the same scaling. If the context is unknown, the
search takes the one with low = 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rorqual.ops.rope import Llama3, Rope, inverse_frequencies

SAME, AGREE = 1e-6, 3e-6
"""Relative tolerances: for divisors that count as equal, and for divisors recomputed in fp32."""
LOW, HIGH = 1.0, 4.0
"""The values of all published models."""
DIGITS = 8
MORE = 60
"""Number of further candidates to try for an exact match after one that agrees."""


def divisors(rope: Rope, dim: int) -> Tensor:
    """Return `rope_freqs.weight` [dim / 2], the divisor of each frequency."""
    return inverse_frequencies(Rope(theta=rope.theta), dim) / inverse_frequencies(rope, dim)


def agree(scaling: Llama3, theta: float, wanted: Sequence[float]) -> bool:
    """Return whether the scaling has these divisors, up to rounding."""
    ours = divisors(Rope(theta=theta, llama3=scaling), 2 * len(wanted))
    return torch.allclose(ours, torch.tensor(wanted), rtol=AGREE, atol=0.0)


def find_llama3(theta: float, wanted: Sequence[float], original: int) -> Llama3 | None:
    """Return the scaling with the divisors `wanted`, or None. Each candidate's divisors are computed and compared.

    `original` is the original context, or 0 if it is unknown. Of several equal scalings, return the one with the shortest numbers.
    """
    given, best, left = torch.tensor(wanted), None, MORE
    for found in _candidates(theta, wanted, original):
        left -= best is not None
        if not left:
            break
        ours = divisors(Rope(theta=theta, llama3=found), 2 * len(wanted))
        if torch.equal(ours, given):
            return found
        if best is None and torch.allclose(ours, given, rtol=AGREE, atol=0.0):
            best = found
    return best


@dataclass(frozen=True)
class Seen:
    """One interpretation of the divisors. Frequencies are in periods per position.

    Multiplied by the original context, they are comparable with the bounds.

    `between` holds the (frequency, k) of the interpolated waves. `stretched` is the highest frequency that is divided by the full factor,
    and `kept` the lowest that stays unchanged.
    """

    factor: float
    between: tuple[tuple[float, float], ...]
    stretched: float
    kept: float


def _candidates(theta: float, wanted: Sequence[float], original: int) -> Iterator[Llama3]:
    plain = inverse_frequencies(Rope(theta=theta), 2 * len(wanted)).double() / (2 * math.pi)
    for seen in _seen(plain.tolist(), wanted):
        for context in [original] if original else _contexts(seen):
            for low, high in _bounds(seen, context):
                yield from _rounded(seen.factor, low, high, context)


def _seen(turns: Sequence[float], wanted: Sequence[float]) -> Iterator[Seen]:
    """Yield possible interpretations of the divisors.

    The divisor farthest from 1 is the factor. If only one wave has it, that wave may also be interpolated.
    """
    farthest = max(wanted, key=lambda value: abs(math.log(value)))
    top = [turn for turn, value in zip(turns, wanted) if math.isclose(value, farthest, rel_tol=SAME)]
    mixed = [(t, v) for t, v in zip(turns, wanted) if t not in top and not math.isclose(v, 1.0, rel_tol=SAME)]
    kept = min((t for t, v in zip(turns, wanted) if math.isclose(v, 1.0, rel_tol=SAME)), default=math.inf)

    def reading(factor: float, between: Sequence[tuple[float, float]], stretched: float) -> Seen:
        shares = tuple((t, (1 / v - 1 / factor) / (1 - 1 / factor)) for t, v in between)
        return Seen(factor, shares, stretched, kept)

    if len(top) == 1:
        whole, larger = [*mixed, (top[0], farthest)], farthest > 1
        for power in range(1, 11):
            factor = 2.0**power if larger else 2.0**-power
            if (factor > farthest) == larger and not math.isclose(factor, farthest, rel_tol=SAME):
                yield reading(factor, whole, 0.0)
    yield reading(farthest, mixed, max(top))


def _contexts(seen: Seen) -> list[int]:
    """Return the original contexts to try if it is unknown: the one with low = 1, then powers of two."""
    line = _line(seen)
    powers = [1 << exponent for exponent in range(5, 21)]
    if line is None:
        return powers
    if line[0] <= 0:
        return [8192]
    exact = 1 / line[0]
    near = min(max(5, round(math.log2(exact))), 30)
    first = [round(exact)] if exact > 1 and math.isclose(round(exact), exact, rel_tol=1e-4) else []
    return [*first, 1 << near]


def _line(seen: Seen) -> tuple[float, float] | None:
    """Return low and high in periods per position, or None unless at least two interpolated waves determine them."""
    if len(seen.between) < 2:
        return None
    (x, kx), (y, ky) = min(seen.between), max(seen.between)
    if x == y or kx == ky:
        return None
    width = (y - x) / (ky - kx)
    return x - kx * width, x - kx * width + width


def _bounds(seen: Seen, context: int) -> Iterator[tuple[float, float]]:
    """Yield low and high for this context. With fewer than two interpolated waves, try the usual values, then short numbers."""
    line = _line(seen)
    if line is not None:
        yield line[0] * context, line[1] * context
        return
    least, most = seen.stretched * context, seen.kept * context
    if not seen.between:
        for low in _short(least, most):
            yield from ((low, high) for high in (HIGH, *_short(low, most)) if low < high <= most)
        return
    turn, share = seen.between[0][0] * context, seen.between[0][1]
    if not 0 < share < 1:
        return
    if math.isfinite(most):
        least = max(least, (turn - share * most) / (1 - share))
    for low in _short(least, turn):
        yield low, low + (turn - low) / share


def _short(least: float, most: float) -> Iterator[float]:
    """Yield numbers from `least` to below `most`: first 1, then numbers with few digits."""
    if least <= LOW < most:
        yield LOW
    for digits in range(DIGITS):
        value = math.ceil(least * 10**digits) / 10**digits
        if max(least, 0.0) <= value < most and value > 0:
            yield value
    if math.isfinite(most):
        yield least + (most - least) / 2


def _rounded(factor: float, low: float, high: float, context: int) -> Iterator[Llama3]:
    """Yield the scaling with rounded numbers, from few digits to many, and last with the computed ones."""
    places = (*range(DIGITS), 17)
    pairs = itertools.product(places, places)
    for rounded in dict.fromkeys((round(factor, a), round(low, b), round(high, b)) for a, b in pairs):
        close = all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(rounded, (factor, low, high)))
        if close and 0 < rounded[1] < rounded[2] and rounded[0] > 0:
            yield Llama3(
                factor=rounded[0],
                low_freq_factor=rounded[1],
                high_freq_factor=rounded[2],
                original_max_position_embeddings=context,
            )
