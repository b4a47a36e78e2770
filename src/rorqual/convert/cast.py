"""Conversion of stored tensors to another dtype, slice by slice. Each slice of a tensor is checked for NaN and infinity.

If a tensor keeps its dtype, the tensor's bytes do not change. An FP8 (E4M3) tensor has one scale for each 128 x 128 block of
the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rorqual.convert.safetensors_slices import CHUNK, FP8, TYPES, Bytes, StoredTensor
from rorqual.core.errors import CheckpointError, NumericsError
from rorqual.ops.quant import BLOCK, block_counts, dequantize_blocks, quantize_blocks


@dataclass(frozen=True)
class TensorPiece:
    """A stored tensor that is written as a part of an output tensor.

    `scale` holds the FP8 block scales. The tensor is dequantised by multiplication with the block scales. With `want="scales"`,
    the values of the tensor are quantised to FP8, and only the block scales of the FP8 values are written.
    """

    tensor: StoredTensor
    scale: StoredTensor | None = None
    want: Literal["values", "scales"] = "values"

    def rows(self, start: int, stop: int) -> Tensor:
        """Read the rows `start` to `stop - 1` of the tensor as [rows, columns]. A tensor in FP8 with scales is dequantised to
        fp32.

        Raises NumericsError for a tensor value or a block scale that is not finite.
        """
        if self.scale is None:
            return _read_finite(self.tensor, start, stop)
        first, last = start // BLOCK, -(-stop // BLOCK)
        values = _read_finite(self.tensor, first * BLOCK, min(last * BLOCK, self.tensor.n_rows))
        dequantised = dequantize_blocks(values, _read_finite(self.scale, first, last))
        return dequantised[start - first * BLOCK : stop - first * BLOCK]

    def chunks(self, dtype: str) -> Iterator[Bytes]:
        """Yield the tensor's values as bytes of the dtype `dtype`.

        Raises NumericsError for a tensor value that is not finite or exceeds the range of `dtype`.
        """
        quantise = self.want == "scales" or dtype == FP8 != self.tensor.dtype
        by_blocks = quantise or self.scale is not None
        for start, stop in self.tensor.slices(CHUNK // 2 if by_blocks else CHUNK, BLOCK if by_blocks else 1):
            values = self.rows(start, stop)
            if quantise:
                values = quantize_blocks(values)[self.want == "scales"]
            out = values.to(TYPES[dtype])
            if not is_finite(out):
                raise NumericsError(
                    f"{self.tensor.name} has values that {dtype} cannot hold",
                    where=str(self.tensor.file),
                    remedy="Use a type with a wider range: dtype=bfloat16 or dtype=float32.",
                )
            yield out.contiguous().flatten().view(torch.uint8).numpy()


def is_finite(values: Tensor) -> bool:
    """Return whether all values of the tensor `values` are finite: neither NaN nor infinity."""
    wide = values.half() if values.dtype == TYPES[FP8] else values  # torch has no `isfinite` for FP8
    return bool(wide.isfinite().all())


def _read_finite(stored: StoredTensor, start: int, stop: int) -> Tensor:
    values = stored.rows(start, stop)
    if not is_finite(values):
        raise NumericsError(
            f"{stored.name} holds NaN or infinity",
            where=str(stored.file),
            remedy="Download the checkpoint again, or export an earlier checkpoint: these weights are unusable.",
        )
    return values


def check_scale(weight: StoredTensor, scale: StoredTensor) -> None:
    """Raise CheckpointError if `scale` does not hold one F32 or BF16 scale per block of the matrix `weight`."""
    if len(weight.shape) != 2 or scale.shape != block_counts(weight.shape) or scale.dtype not in ("F32", "BF16"):
        raise CheckpointError(
            f"{scale.name} is {scale.dtype} {scale.shape} and {weight.name} is {weight.shape}, but each "
            f"{BLOCK} x {BLOCK} block needs one scale",
            where=str(scale.file),
            remedy=f"Only FP8 with {BLOCK} x {BLOCK} blocks is supported. Convert the checkpoint to bfloat16 with the tool that "
            "wrote it.",
        )
