"""Seeds for servers: one request a sample, whose seed makes it draw what the sample of that number draws here."""

from __future__ import annotations

from typing import Literal

_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1

Bits = Literal[31, 64]


def sample_seed(seed: int, sample: int, bits: Bits = 64) -> int:
    """The seed to send for sample number `sample` of a request with `seed`.

    With 64 bits it is a signed number (OpenAI's API documents one), the `seed` itself for the first sample, and such that
    `sampler.sample_key` of it is that of (`seed`, `sample`): so a server that draws as this engine does gives this engine's answers. With 31
    bits it is a number from 0 that is a hash of both.
    """
    mixed = _mix(seed) ^ (sample & _MASK)
    if bits == 31:
        return _mix(mixed) >> 33
    found = _unmix(mixed)
    return found - (1 << 64) if found >> 63 else found


def _mix(value: int) -> int:
    """SplitMix64's (Steele, Lea and Flood 2014), as `sampler` has it."""
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
