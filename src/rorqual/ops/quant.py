"""FP8 weights in blocks (DeepSeek-V3 report, section 3.3): e4m3 values, and one fp32 scale for each 128 x 128 of them.

The scale is called `scale_inv` in the checkpoints: the inverse of what the values were multiplied by, so a weight is value
times scale. Blocks start at the first row and column; the last ones hold what is left. V3.1's scales are powers of two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 128
LARGEST = 448.0
"""The largest value of e4m3 (without infinities)."""


def blocks(shape: Sequence[int], block: int = BLOCK) -> tuple[int, int]:
    """How many blocks a weight of `shape` [rows, columns] has, each way."""
    rows, columns = shape
    return -(-rows // block), -(-columns // block)


def dequantize_blocks(weight: Tensor, scale_inv: Tensor, block: int = BLOCK) -> Tensor:
    """weight [rows, columns] (e4m3), scale_inv [row blocks, column blocks] -> [rows, columns] in fp32, each product rounded once."""
    return weight.float().mul_(_spread(weight, scale_inv.float(), block))


def quantize_blocks(weight: Tensor, block: int = BLOCK, *, power_of_two: bool = False) -> tuple[Tensor, Tensor]:
    """weight [rows, columns] -> e4m3 [rows, columns] and scale_inv [row blocks, column blocks] in fp32.

    A block's largest value becomes 448; with `power_of_two` (V3.1's ue8m0) its scale is rounded up to a power of two. A block
    of zeros has scale 1. Rounding is to nearest, ties to even.
    """
    wide = weight.float()
    largest = _pad(wide.abs(), block).amax((1, 3))
    scale = torch.where(largest == 0, 1.0, largest / LARGEST)
    if power_of_two:
        mantissa, exponent = torch.frexp(scale)  # scale = mantissa 2^exponent, mantissa in [0.5, 1)
        scale = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int())
    # Rounding can put a quotient above 448, which e4m3 would make NaN.
    values = (wide / _spread(wide, scale, block)).clamp_(-LARGEST, LARGEST)
    return values.to(torch.float8_e4m3fn), scale


def _pad(weight: Tensor, block: int) -> Tensor:
    """[row blocks, block, column blocks, block], filled with zeros."""
    rows, columns = blocks(weight.shape, block)
    padded = weight.new_zeros(rows * block, columns * block)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    return padded.view(rows, block, columns, block)


def _spread(weight: Tensor, scale: Tensor, block: int) -> Tensor:
    """The scale of each value of `weight`."""
    if tuple(scale.shape) != (expected := blocks(weight.shape, block)):
        raise ValueError(
            f"a weight {tuple(weight.shape)} has scales {expected} in blocks of {block}, not {tuple(scale.shape)}"
        )
    rows = scale.repeat_interleave(block, 0)[: weight.shape[0]]
    return rows.repeat_interleave(block, 1)[:, : weight.shape[1]]
