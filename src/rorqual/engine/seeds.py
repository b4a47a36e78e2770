"""Random numbers for sampling, and seeds for requests to remote servers. With a 64-bit seed, a Rorqual server draws the same
random numbers as a local engine.

A random number is a function of (seed, sample, position) and does not depend on the batch, the slot or the number of threads.
The random number generator is SplitMix64 (Steele, Lea and Flood 2014). Each row of a batch uses one random number per engine
step.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1

Bits = Literal[31, 64]


def sample_key(seed: int, sample: int) -> int:
    """Return the 64-bit key of the random stream of sample number `sample`."""
    return _splitmix64(_splitmix64(seed & _MASK) ^ (sample & _MASK))


def uniform(keys: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return one uniform random number in [0, 1) per row, with 53 random bits.

    Row i gets the random number with index `positions[i]` in the SplitMix64 stream with the key `keys[i]`.
    """
    value = keys + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(
        _GOLDEN
    )  # the product wraps modulo 2**64 on purpose
    value = (value ^ (value >> np.uint64(30))) * np.uint64(_MIX1)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(_MIX2)
    value ^= value >> np.uint64(31)
    return (value >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample_seed(seed: int, sample: int, bits: Bits = 64) -> int:
    """Return the seed to send to a server for sample number `sample` of a request with `seed`.

    With `bits=64`, the returned seed is signed, as in OpenAI's API, and equals `seed` for sample 0. With `bits=64`,
    `sample_key(returned seed, 0)` equals `sample_key(seed, sample)`, so a Rorqual server draws the same sample as a local
    engine. With `bits=31`, the returned seed is a non-negative hash of `seed` and `sample`.
    """
    mixed = _splitmix64(seed) ^ (sample & _MASK)
    if bits == 31:
        return _splitmix64(mixed) >> 33
    server_seed = _invert_splitmix64(mixed)
    return server_seed - (1 << 64) if server_seed >> 63 else server_seed


def _splitmix64(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _MIX1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX2) & _MASK
    return value ^ (value >> 31)


def _invert_splitmix64(value: int) -> int:
    """Return the number that `_splitmix64` maps to `value`."""
    value = _invert_xor_shift(value, 31) * pow(_MIX2, -1, 1 << 64) & _MASK
    value = _invert_xor_shift(value, 27) * pow(_MIX1, -1, 1 << 64) & _MASK
    return (_invert_xor_shift(value, 30) - _GOLDEN) & _MASK


def _invert_xor_shift(value: int, by: int) -> int:
    """Return the number that `value ^= value >> by` maps to `value`. The returned number is correct only if the shift
    `by` is at least 22 bits."""
    return value ^ (value >> by) ^ (value >> 2 * by)
