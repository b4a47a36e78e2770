"""FP8 quantization (DeepSeek-V3 report, section 3.3): e4m3 values with one fp32 scale per 128 x 128 block, or per row.

Checkpoints call the FP8 scale `scale_inv`, because the scale is the inverse of the factor applied before quantization: weight =
value * scale_inv. The last block of a matrix in each direction may have fewer than 128 rows or columns. The scales of
DeepSeek-V3.1 are powers of two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 128
LARGEST = 448.0
"""Largest finite value of the FP8 type e4m3."""


def block_counts(shape: Sequence[int], block: int = BLOCK) -> tuple[int, int]:
    """Return the number of row and column blocks of a weight of `shape` [rows, columns]."""
    rows, columns = shape
    return -(-rows // block), -(-columns // block)


def dequantize_blocks(weight: Tensor, scale_inv: Tensor, block: int = BLOCK) -> Tensor:
    """Dequantize weight [rows, columns] (e4m3) with scale_inv [row blocks, column blocks] to fp32. Each dequantized value is
    rounded once."""
    return weight.float().mul_(_expand_scales(weight, scale_inv.float(), block))


def quantize_blocks(weight: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Quantize weight [rows, columns] to e4m3 [rows, columns] and scale_inv [row blocks, column blocks] in fp32.

    The scale of a block maps the block's largest absolute value to 448. A block of zeros has scale 1. Quantized values are
    rounded to nearest, ties to even.
    """
    wide = weight.float()
    largest = _pad(wide.abs(), block).amax((1, 3))
    scale = _scale_from_max(largest)
    # Rounding can push a quotient above 448, which e4m3 would turn into NaN.
    values = (wide / _expand_scales(wide, scale, block)).clamp_(-LARGEST, LARGEST)
    return values.to(torch.float8_e4m3fn), scale


def row_scales(rows: Tensor) -> Tensor:
    """Return one scale per row [..., 1] in fp32 for rows [..., width]: the smallest power of two with which all values of the
    row fit into e4m3.

    DeepSeek-V3.2 scales each index key by a power of two (ue8m0). Dividing a bf16 row by its scale and multiplying the row by
    the scale again is exact, so only the rounding to e4m3 changes the row. A row of zeros has scale 1.
    """
    scale = _scale_from_max(rows.float().abs().amax(-1, keepdim=True))
    mantissa, exponent = torch.frexp(scale)  # scale = mantissa 2^exponent, mantissa in [0.5, 1)
    return torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int())


NARROWED = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Parts of a block's range that 4 bits may hold."""


def fit_4_bits(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return fp32 blocks [..., 32] as numbers from 0 to 15, and their scales and least values [...] in half precision, as GGUF's Q4_1.

    A narrower range rounds most values more finely and cuts the ends. Each block has the range with the least squared error.
    """
    low, high = blocks.amin(-1), blocks.amax(-1)
    best: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
    for part in NARROWED:
        least, scales = (low * part).half(), ((high - low) * part / 15).half()
        whole = divide_by_scales(blocks - least.float().unsqueeze(-1), scales).clamp(0, 15)
        errors = whole * scales.float().unsqueeze(-1) + least.float().unsqueeze(-1) - blocks
        found = (whole.to(torch.uint8), scales, least, errors.double().square().sum(-1))
        if best is not None:
            better = found[3] < best[3]
            found = (
                torch.where(better.unsqueeze(-1), found[0], best[0]),
                *(torch.where(better, new, old) for new, old in zip(found[1:], best[1:])),
            )  # type: ignore[assignment]
        best = found
    assert best is not None
    return best[:3]


def divide_by_scales(blocks: Tensor, scales: Tensor) -> Tensor:
    """Return blocks [..., 32] divided by their scales [...], as whole numbers. A block whose scale is 0 has zeros."""
    return (blocks / scales.float().unsqueeze(-1)).nan_to_num(0, 0, 0).round()


def _scale_from_max(largest: Tensor) -> Tensor:
    return torch.where(largest == 0, 1.0, largest / LARGEST)


def _pad(weight: Tensor, block: int) -> Tensor:
    """Pad a weight with zeros and reshape it to [row blocks, block, column blocks, block]."""
    rows, columns = block_counts(weight.shape, block)
    padded = weight.new_zeros(rows * block, columns * block)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    return padded.view(rows, block, columns, block)


def _expand_scales(weight: Tensor, scale: Tensor, block: int) -> Tensor:
    """Expand the block scales `scale` to one scale per value of `weight`."""
    if tuple(scale.shape) != (expected := block_counts(weight.shape, block)):
        raise ValueError(
            f"weight {tuple(weight.shape)} needs scales {expected} for blocks of {block}, but got {tuple(scale.shape)}"
        )
    rows = scale.repeat_interleave(block, 0)[: weight.shape[0]]
    return rows.repeat_interleave(block, 1)[:, : weight.shape[1]]
