"""Recovery of Llama 3.1's RoPE scaling from its frequency divisors. GGUF stores only the divisors, not the parameters.

The divisor of a frequency is 1 / ((1 - k) / factor + k), where k = clamp((w - low) / (high - low), 0, 1).
Here w is the original context length divided by the wavelength. Multiplying the context length, `low` and `high` by the same
number does not change the divisors. If the context length is unknown, the search therefore assumes low = 1.
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
"""Relative tolerances: `SAME` to compare the divisors of a file with each other, `AGREE` to compare them with recomputed divisors."""
MOST = 1e-3
"""Largest additional tolerance of an interpolated frequency."""
LOW, HIGH = 1.0, 4.0
"""The values of `low_freq_factor` and `high_freq_factor` in all published models."""
DIGITS = 8
"""Candidate parameters are rounded to fewer than this many decimal places."""
MORE = 60
"""Number of candidates to try for an exact match after the first approximate match."""


def divisors(rope: Rope, dim: int) -> Tensor:
    """Return the divisor of each RoPE frequency, shape [dim / 2]. The divisors are the content of the tensor `rope_freqs.weight`."""
    return inverse_frequencies(Rope(theta=rope.theta), dim) / inverse_frequencies(rope, dim)


def agree(scaling: Llama3, theta: float, wanted: Sequence[float]) -> bool:
    """Return whether the divisors of `scaling` equal `wanted` up to rounding."""
    return _agree(divisors(Rope(theta=theta, llama3=scaling), 2 * len(wanted)), torch.tensor(wanted), scaling)


def _agree(computed: Tensor, wanted: Tensor, scaling: Llama3) -> bool:
    """Compare divisors, given the scaling of `computed`.

    An interpolated frequency has a larger tolerance: fp32 rounds w, and k = (w - low) / (high - low) is then wrong by about
    2^-23 high / (high - low). The relative error of a divisor d is this error times d |1 - 1 / factor|.
    """
    factor, low, high = scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor
    between = ((computed - 1).abs() > SAME) & ((computed / factor - 1).abs() > SAME)
    rounding = computed * abs(1 - 1 / factor) * 2.0**-23 * high / (high - low)
    tolerance = AGREE + torch.where(between, rounding.clamp(max=MOST), 0)
    return bool(((computed / wanted - 1).abs() <= tolerance).all())


def find_llama3(theta: float, wanted: Sequence[float], original: int) -> Llama3 | None:
    """Return a scaling whose divisors are `wanted`, or None. Candidates are tried in order of increasing number of digits.

    `original` is the original context length, or 0 if it is unknown. The divisors of each candidate are computed and compared. If none
    is equal to the last bit, the candidate with the smallest error is returned.
    """
    target, best, remaining = torch.tensor(wanted), None, MORE
    smallest = math.inf
    for candidate in _candidates(theta, wanted, original):
        remaining -= best is not None
        if not remaining:
            break
        computed = divisors(Rope(theta=theta, llama3=candidate), 2 * len(wanted))
        if torch.equal(computed, target):
            return candidate
        error = float((computed / target - 1).abs().max())
        if error < smallest and _agree(computed, target, candidate):
            best, smallest = candidate, error
    return best


@dataclass(frozen=True)
class Interpretation:
    """A scaling that would explain the divisors of a file.

    A scaling divides a frequency by `factor`, leaves it unchanged, or interpolates between the divided and the unchanged
    frequency. All frequencies are in periods per position. `between` holds (frequency, k) of the interpolated frequencies.
    `stretched` is the highest frequency that is divided by `factor`, and `kept` is the lowest unchanged frequency. `low` and
    `high` (`low_freq_factor` and `high_freq_factor`) are frequencies multiplied by the original context length.
    """

    factor: float
    between: tuple[tuple[float, float], ...]
    stretched: float
    kept: float


def _candidates(theta: float, wanted: Sequence[float], original: int) -> Iterator[Llama3]:
    plain = inverse_frequencies(Rope(theta=theta), 2 * len(wanted)).double() / (2 * math.pi)
    for interpretation in _interpretations(plain.tolist(), wanted):
        for context in [original] if original else _contexts(interpretation):
            for low, high in _bounds(interpretation, context):
                yield from _rounded(interpretation.factor, low, high, context)


def _interpretations(turns: Sequence[float], wanted: Sequence[float]) -> Iterator[Interpretation]:
    """Yield the possible interpretations of the divisors.

    `factor` is usually the divisor farthest from 1. But if only one frequency has this divisor, the frequency may be
    interpolated, and `factor` is then even farther from 1. In this case, the function first tries powers of two
    beyond the divisor as `factor`.
    """
    farthest = max(wanted, key=lambda value: abs(math.log(value)))
    top = [turn for turn, value in zip(turns, wanted) if math.isclose(value, farthest, rel_tol=SAME)]
    mixed = [(t, v) for t, v in zip(turns, wanted) if t not in top and not math.isclose(v, 1.0, rel_tol=SAME)]
    kept = min((t for t, v in zip(turns, wanted) if math.isclose(v, 1.0, rel_tol=SAME)), default=math.inf)

    def interpret(factor: float, between: Sequence[tuple[float, float]], stretched: float) -> Interpretation:
        shares = tuple((t, (1 / v - 1 / factor) / (1 - 1 / factor)) for t, v in between)
        return Interpretation(factor, shares, stretched, kept)

    if len(top) == 1:
        between, larger = [*mixed, (top[0], farthest)], farthest > 1
        for power in range(1, 11):
            factor = 2.0**power if larger else 2.0**-power
            if (factor > farthest) == larger and not math.isclose(factor, farthest, rel_tol=SAME):
                yield interpret(factor, between, 0.0)
    yield interpret(farthest, mixed, max(top))


def _contexts(interpretation: Interpretation) -> list[int]:
    """Return original context lengths to try if the file states none.

    The divisors may determine the length for low = 1. In this case, return the power of two nearest to this length; if the
    length is an integer, put it first. If the length would not be positive, return 8192. If the divisors do not determine the
    length, return powers of two.
    """
    line = _line(interpretation)
    powers = [1 << exponent for exponent in range(5, 21)]
    if line is None:
        return powers
    if line[0] <= 0:
        return [8192]
    exact = 1 / line[0]
    near = min(max(5, round(math.log2(exact))), 30)
    first = [round(exact)] if exact > 1 and math.isclose(round(exact), exact, rel_tol=1e-4) else []
    return [*first, 1 << near]


def _line(interpretation: Interpretation) -> tuple[float, float] | None:
    """Return (low, high) in periods per position. Return None if all interpolated frequencies have the same k."""
    if len(interpretation.between) < 2:
        return None
    (x, kx), (y, ky) = min(interpretation.between), max(interpretation.between)
    if x == y or kx == ky:
        return None
    width = (y - x) / (ky - kx)
    return x - kx * width, x - kx * width + width


def _bounds(interpretation: Interpretation, context: int) -> Iterator[tuple[float, float]]:
    """Yield candidates (low, high) for the context length `context`.

    Two interpolated frequencies determine `low` and `high`. With fewer interpolated frequencies, the usual values are
    tried first, then numbers with few digits.
    """
    line = _line(interpretation)
    if line is not None:
        yield line[0] * context, line[1] * context
        return
    least, most = interpretation.stretched * context, interpretation.kept * context
    if not interpretation.between:
        for low in _short(least, most):
            yield from ((low, high) for high in (HIGH, *_short(low, most)) if low < high <= most)
        return
    turn, share = interpretation.between[0][0] * context, interpretation.between[0][1]
    if not 0 < share < 1:
        return
    if math.isfinite(most):
        least = max(least, (turn - share * most) / (1 - share))
    for low in _short(least, turn):
        yield low, low + (turn - low) / share


def _short(least: float, most: float) -> Iterator[float]:
    """Yield numbers x with `least` <= x < `most`: 1 if it is in this range, numbers with few digits, and the midpoint."""
    if least <= LOW < most:
        yield LOW
    for digits in range(DIGITS):
        value = math.ceil(least * 10**digits) / 10**digits
        if max(least, 0.0) <= value < most and value > 0:
            yield value
    if math.isfinite(most):
        yield least + (most - least) / 2


def _rounded(factor: float, low: float, high: float, context: int) -> Iterator[Llama3]:
    """Yield scalings with the parameters rounded to more and more digits. The last scaling is not rounded."""
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
