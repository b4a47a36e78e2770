"""Rotary position embeddings (Su et al. 2021, eq. 34), with the context extensions of published models.

The supported context extensions are YaRN (Peng et al. 2023, section 3; DeepSeek-V2 and V3, Qwen2.5), Llama 3.1's scaling by
wavelength, and linear position scaling.

RoPE has two layouts, and using the wrong layout corrupts attention without an error. MLA rotates adjacent pairs of
dimensions (interleaved). Llama, Qwen and V3.2's indexer rotate dimension i with dimension i + d/2 (half-split).
"""

from __future__ import annotations

import math
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rorqual.core.config import LARGEST, Config, Count, NonNegative, Positive

ANGLE_CHUNK = 4096
"""Number of positions per `rope_table` call. The number of positions per call is fixed so that the RoPE angles do not depend on
the table length."""


class Yarn(Config):
    """YaRN's extension of a context of `original_max_position_embeddings` tokens by `factor`.

    `attention_factor` multiplies cos and sin. If `attention_factor` is 0, the factor on cos and sin is computed from `mscale`
    and `mscale_all_dim` by eq. 22 of the YaRN paper. As in transformers, a `mscale` or `mscale_all_dim` of 0 counts as not set.
    Unless both `mscale` and `mscale_all_dim` are set, the factor on cos and sin is the factor of mscale 1.
    """

    factor: Positive
    original_max_position_embeddings: Count
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    mscale: NonNegative = 0.0
    mscale_all_dim: NonNegative = 0.0
    attention_factor: NonNegative = 0.0


class Llama3Scaling(Config):
    """Llama 3.1's context extension (`apply_scaling` in Llama's reference code).

    RoPE frequencies that complete fewer than `low_freq_factor` rotations over the original context are divided by `factor`.
    RoPE frequencies with more than `high_freq_factor` rotations are unchanged. RoPE frequencies with a number of rotations
    between `low_freq_factor` and `high_freq_factor` are interpolated.
    """

    factor: Positive
    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 4.0
    original_max_position_embeddings: Count

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError("low_freq_factor must be below high_freq_factor")
        return self


class Rope(Config):
    """RoPE with base `theta` and at most one context extension: `yarn`, `llama3` or `linear`.

    `linear` is the factor by which all positions are divided. A `linear` of 1 means no scaling.
    """

    theta: float = Field(default=10000.0, gt=1, le=LARGEST, allow_inf_nan=False)
    yarn: Yarn | None = None
    llama3: Llama3Scaling | None = None
    linear: Positive = 1.0

    @model_validator(mode="after")
    def _check_one_extension(self) -> Self:
        if (self.yarn is not None) + (self.llama3 is not None) + (self.linear != 1.0) > 1:
            raise ValueError("at most one of yarn, llama3 and linear may be set")
        return self


def mscale(factor: float, scale: float) -> float:
    """Return YaRN's attention factor 0.1 * scale * ln(factor) + 1 (Peng et al. 2023, eq. 22)."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def softmax_factor(rope: Rope) -> float:
    """Return the factor on the softmax scale: mscale(factor, mscale_all_dim)^2 if YaRN sets mscale_all_dim, as in
    DeepSeek's models, and 1 otherwise."""
    if rope.yarn is None or rope.yarn.mscale_all_dim == 0:
        return 1.0
    return mscale(rope.yarn.factor, rope.yarn.mscale_all_dim) ** 2


def _yarn_table_factor(yarn: Yarn) -> float:
    if yarn.attention_factor:
        return yarn.attention_factor
    if yarn.mscale and yarn.mscale_all_dim:
        return mscale(yarn.factor, yarn.mscale) / mscale(yarn.factor, yarn.mscale_all_dim)
    return mscale(yarn.factor, 1.0)


def inverse_frequencies(rope: Rope, dim: int, device: torch.device | None = None) -> Tensor:
    """Return the RoPE frequencies [dim / 2] in radians per position, in fp32."""
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
    plain = 1.0 / rope.theta**exponent
    if rope.yarn is not None:
        return _yarn_frequencies(rope.yarn, rope.theta, plain)
    if rope.llama3 is not None:
        return _llama3_frequencies(rope.llama3, plain)
    return plain / rope.linear


def _yarn_frequencies(yarn: Yarn, theta: float, plain: Tensor) -> Tensor:
    half = plain.shape[0]

    def dimension(rotations: float) -> float:
        # Return the dimension that completes `rotations` rotations over the original context.
        length = yarn.original_max_position_embeddings
        return half * math.log(length / (rotations * 2 * math.pi)) / math.log(theta)

    low, high = max(math.floor(dimension(yarn.beta_fast)), 0), min(math.ceil(dimension(yarn.beta_slow)), 2 * half - 1)
    index = torch.arange(half, dtype=torch.float32, device=plain.device)
    ramp = ((index - low) / (high - low if high != low else 0.001)).clamp(0, 1)
    return plain / yarn.factor * ramp + plain * (1 - ramp)


def _llama3_frequencies(scaling: Llama3Scaling, plain: Tensor) -> Tensor:
    turns = (
        scaling.original_max_position_embeddings * plain / (2 * math.pi)
    )  # number of rotations over the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    unscaled = ((turns - low) / (high - low)).clamp(0, 1)
    return plain / scaling.factor * (1 - unscaled) + plain * unscaled


def rope_table(rope: Rope, dim: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the RoPE cosines and sines, each [*positions.shape, dim / 2] in fp32, of the integer positions `positions`."""
    angles = positions.float().unsqueeze(-1) * inverse_frequencies(rope, dim, positions.device)
    factor = 1.0 if rope.yarn is None else _yarn_table_factor(rope.yarn)
    return angles.cos() * factor, angles.sin() * factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Apply RoPE to x [..., dim].

    `cos` and `sin` [..., dim] must come from `expand_cos_sin`. The returned tensor has the same dimension order as x.

    The products of x with `cos` and `sin` are computed in fp32, as in DeepSeek's code, because cosines in bf16 could not
    distinguish adjacent positions.
    """
    if interleaved:
        swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    else:
        first, second = x.chunk(2, dim=-1)
        swapped = torch.cat((second, first), dim=-1)
    rotated = (x * cos).add_(swapped * sin)  # fp32, by type promotion
    return rotated.to(x.dtype)


def expand_cos_sin(cos: Tensor, sin: Tensor, *, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Expand `cos` and `sin` [..., dim / 2] to [..., dim] for `rotate`. Each cosine occurs twice, and each sine occurs with
    both signs."""
    if interleaved:
        return cos.repeat_interleave(2, dim=-1), torch.stack((-sin, sin), dim=-1).flatten(-2)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rope_angle_table(rope: Rope, dim: int, positions: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the RoPE angles of positions 0, 1, 2, ...

    The tensors of cosines and sines are [n, dim / 2], with n at least `positions`.
    """
    parts = [
        rope_table(rope, dim, torch.arange(start, start + ANGLE_CHUNK, device=device))
        for start in range(0, positions, ANGLE_CHUNK)
    ]
    cos, sin = zip(*parts)
    return torch.cat(cos), torch.cat(sin)
