"""FP8 in blocks against a decoding of e4m3 by its bits, block by block; what is quantised is near, and stays what it is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rorqual.ops.quant import block_counts, dequantize_blocks, quantize_blocks, row_scales

SHAPES = [(128, 128), (1, 1), (130, 257), (256, 128), (127, 129), (300, 50)]


def decoded(byte: int) -> float:
    """e4m3 by its bits: sign, 4 of exponent (bias 7), 3 of mantissa; no infinities, one NaN a sign."""
    sign, exponent, mantissa = -1.0 if byte >> 7 else 1.0, byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    return sign * (mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10))


def by_hand(weight: Tensor, scale: Tensor, block: int) -> Tensor:
    """Independent of ours: bytes decoded by a table, blocks walked one by one; a product of two fp32 numbers, rounded once."""
    values = torch.tensor([decoded(byte) for byte in range(256)], dtype=torch.float32)[weight.view(torch.uint8).long()]
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            part = values[i * block : (i + 1) * block, j * block : (j + 1) * block]
            # float64 holds a product of two fp32 numbers exactly, so this rounds once, as a product in fp32 does.
            part.copy_((part.double() * scale[i, j].double()).float())
    return values


@pytest.mark.parametrize("shape", SHAPES)
def test_dequantised_bit_for_bit(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    bits[(bits & 127) == 127] = 0  # NaN
    weight = bits.view(torch.float8_e4m3fn)
    scale = torch.rand(block_counts(shape), generator=generator) * 1e-2
    assert torch.equal(dequantize_blocks(weight, scale), by_hand(weight, scale, 128))


@pytest.mark.parametrize("shape", SHAPES)
def test_quantised_is_near_and_uses_the_range(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values, scale = quantize_blocks(weight)
    assert values.dtype == torch.float8_e4m3fn and scale.dtype == torch.float32 and scale.shape == block_counts(shape)
    back = dequantize_blocks(values, scale)
    largest = weight.abs().max()
    # Half a step of three bits of mantissa; below 2^-6 of the scale steps are even: 2^-10 of it.
    assert bool(((back - weight).abs() <= weight.abs() * 2**-4 + largest / 448 * 2 * 2**-10).all())
    assert values.float().abs().max() == 448


@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), min_size=1, max_size=5))
def test_a_row_has_the_least_power_of_two_as_its_scale(rows: list[list[float]]) -> None:
    scales = row_scales(torch.tensor(rows))
    assert scales.shape == (len(rows), 1) and scales.dtype == torch.float32
    for row, scale in zip(rows, scales.flatten().tolist()):
        largest = max(map(abs, row))
        if largest == 0:
            assert scale == 1
        elif largest > 1e-30:  # below, the scale is no normal number
            assert math.frexp(scale)[0] == 0.5
            assert largest / scale <= 448 * (1 + 2**-23) and largest / scale > 224
            assert torch.isfinite((torch.tensor(row) / scale).to(torch.float8_e4m3fn).float()).all()
