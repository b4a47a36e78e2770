"""Rotary positions against complex numbers, both layouts, and YaRN's laws and its figures in DeepSeek-V3."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from rorqual.ops.attention import document_mask
from rorqual.ops.rope import Rope, Yarn, expand_cos_sin, inverse_frequencies, rope_table, rotate, softmax_factor

POSITIONS = [0, 1, 7, 1000, 100_000]
V3 = Rope(yarn=Yarn(factor=40.0, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=1.0))


def by_complex_numbers(x: list[float], position: int, theta: float, interleaved: bool) -> list[float]:
    half, out = len(x) // 2, [0.0] * len(x)
    for pair in range(half):
        a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + half)
        turned = complex(x[a], x[b]) * cmath.exp(1j * position * theta ** (-2 * pair / len(x)))
        out[a], out[b] = turned.real, turned.imag
    return out


def turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    return rotate(x, *expand_cos_sin(cos, sin, interleaved=interleaved), interleaved=interleaved)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("theta", [100.0, 10_000.0])
def test_rotation_at_several_positions(interleaved: bool, theta: float) -> None:
    x = torch.randn(len(POSITIONS), 8, generator=torch.Generator().manual_seed(0))
    cos, sin = rope_table(Rope(theta=theta), 8, torch.tensor(POSITIONS))
    turned = turn(x, cos, sin, interleaved)
    for row, position in enumerate(POSITIONS):
        expected = by_complex_numbers(x[row].tolist(), position, theta, interleaved)
        # fp32 angles: at position 100,000 they are known to 0.01 radian's third of a percent.
        torch.testing.assert_close(turned[row], torch.tensor(expected), rtol=0, atol=1e-6 + position * 2e-7)


def test_products_in_bf16_use_fp32_angles() -> None:
    """Rounding a cosine to bf16 loses positions: error stays that of one rounding of the result, at any position."""
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    cos, sin = rope_table(Rope(), 64, torch.arange(64) + 4000)
    turned, exact = turn(x, cos, sin, True), turn(x.float(), cos, sin, True)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, exact.bfloat16())


def test_softmax_factor_of_deepseek_v3() -> None:
    """mscale = mscale_all_dim = 1, factor 40: (0.1 ln 40 + 1)^2 on 1 / sqrt(192), and a table of length 1."""
    assert softmax_factor(V3) == pytest.approx((0.1 * math.log(40) + 1) ** 2)
    assert 192**-0.5 * softmax_factor(V3) == pytest.approx(0.13523, abs=5e-6)
    cos, sin = rope_table(V3, 64, torch.tensor([12345]))
    torch.testing.assert_close(cos**2 + sin**2, torch.ones(1, 32))
    assert softmax_factor(Rope()) == 1.0


def test_document_mask_is_causal_and_within_a_document() -> None:
    mask = document_mask(torch.tensor([[0, 0, 1, 1]]))[0, 0]
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert torch.equal(mask, torch.tensor(expected, dtype=torch.bool))


@pytest.mark.parametrize(
    ("theta", "length", "beta_fast", "shares"),
    [
        # Of 8 dimensions, numbers 2.05 and 11.3 turn 200 times and once: the ramp runs from 2 to 7, the last that there is.
        (10.0, 4096, 200.0, [0.0, 0.0, 0.0, 1 / 5]),
        # Numbers -0.5 and 1.008: it runs from 0, the first, to 2.
        (10_000.0, 64, 32.0, [0.0, 1 / 2, 1.0, 1.0]),
    ],
    ids=["above", "below"],
)
def test_yarns_ramp_stays_within_the_dimensions(
    theta: float, length: int, beta_fast: float, shares: list[float]
) -> None:
    yarn = Yarn(factor=4.0, original_max_position_embeddings=length, beta_fast=beta_fast)
    found = inverse_frequencies(Rope(theta=theta, yarn=yarn), 8)
    plain = [theta ** (-2 * pair / 8) for pair in range(4)]
    assert found.tolist() == pytest.approx([p * (1 - share * 3 / 4) for p, share in zip(plain, shares)], rel=1e-5)
