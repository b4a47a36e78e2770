"""The random numbers of a sample, and seeds by which a server draws the same.

They are a function of (seed, sample, position) and of nothing else: who else is in the batch, which slot a sequence has and how many threads
run change nothing. They come from SplitMix64 (Steele, Lea and Flood 2014), one number a row and step.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1

Bits = Literal[31, 64]


def sample_key(seed: int, sample: int) -> int:
    """The 64-bit key of one sample's random numbers."""
    return _mix(_mix(seed & _MASK) ^ (sample & _MASK))


def uniform(keys: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """One number in [0, 1), with 53 random bits, for each row: the `positions`-th of SplitMix64's stream at `keys`."""
    value = keys + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)  # wraps, as it should
    value = (value ^ (value >> np.uint64(30))) * np.uint64(_MIX1)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(_MIX2)
    value ^= value >> np.uint64(31)
    return (value >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample_seed(seed: int, sample: int, bits: Bits = 64) -> int:
    """The seed to send for sample number `sample` of a request with `seed`.

    With 64 bits it is a signed number (OpenAI's API documents one), the `seed` itself for the first sample, and such that
    `sample_key` of it is that of (`seed`, `sample`): so a server that draws as this engine does gives this engine's answers. With 31
    bits it is a number from 0 that is a hash of both.
    """
    mixed = _mix(seed) ^ (sample & _MASK)
    if bits == 31:
        return _mix(mixed) >> 33
    found = _unmix(mixed)
    return found - (1 << 64) if found >> 63 else found


def _mix(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _MIX1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX2) & _MASK
    return value ^ (value >> 31)


def _unmix(value: int) -> int:
    """The only number that `_mix` makes `value` of."""
    value = _unshift(value, 31) * pow(_MIX2, -1, 1 << 64) & _MASK
    value = _unshift(value, 27) * pow(_MIX1, -1, 1 << 64) & _MASK
    return (_unshift(value, 30) - _GOLDEN) & _MASK


def _unshift(value: int, by: int) -> int:
    """The number that gives `value` when it is combined with itself shifted right."""
    return value ^ (value >> by) ^ (value >> 2 * by)
