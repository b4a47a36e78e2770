"""Conversion of stored tensors to another dtype in slices. Each slice is checked for NaN and infinity.

A tensor that keeps its dtype is copied byte by byte. FP8 (E4M3) has one scale for each 128 x 128 block of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rorqual.convert.stream import CHUNK, ITEM_BYTES, Stored
from rorqual.core.errors import CheckpointError, NumericsError
from rorqual.ops.quant import BLOCK, blocks, dequantize_blocks, quantize_blocks

FP8 = "F8_E4M3"
TYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    FP8: torch.float8_e4m3fn,
}
"""The supported dtypes of weights: the safetensors name mapped to the torch dtype."""
_EXPONENT: Mapping[str, tuple[type[np.unsignedinteger], int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    FP8: (np.uint8, 0x7F),  # E4M3 has no infinity, and one NaN for each sign
}
"""Per dtype, the unsigned integer type of the same size, and a bit mask: only NaN and infinity have all bits of the mask set.

The mask covers the exponent. For FP8, it also covers the mantissa.
"""


@dataclass(frozen=True)
class TensorPiece:
    """A stored tensor that is written as a part of an output tensor.

    `scale` holds the FP8 block scales; the tensor is dequantised by multiplication with these scales. With `want="scales"`, the
    values are quantised to FP8, and only their block scales are written.
    """

    tensor: Stored
    scale: Stored | None = None
    want: Literal["values", "scales"] = "values"

    def chunks(self, dtype: str) -> Iterator[bytearray | memoryview]:
        """Yield the values as bytes of the dtype `dtype`.

        Raises NumericsError for a value that is not finite or exceeds the range of `dtype`.
        """
        source = self.tensor
        if self.want == "values" and self.scale is None and dtype == source.dtype:
            for chunk in source.chunks(ITEM_BYTES[dtype]):
                self._check(chunk, dtype)
                yield chunk
            return
        by_blocks = self.scale is not None or self.want == "scales" or dtype == FP8
        for values in self._rows() if by_blocks else self._flat():
            if self.want == "scales":
                values = quantize_blocks(values)[1]
            elif dtype == FP8:
                values = quantize_blocks(values)[0]
            out = _bytes(values.to(TYPES[dtype]))
            self._check(out, dtype)
            yield out

    def _flat(self) -> Iterator[Tensor]:
        kind = TYPES[self.tensor.dtype]
        for chunk in self.tensor.chunks(ITEM_BYTES[self.tensor.dtype]):
            self._check(chunk, self.tensor.dtype)
            yield torch.frombuffer(chunk, dtype=kind)

    def _rows(self) -> Iterator[Tensor]:
        """Yield slices [rows, columns] that consist of complete blocks. If the tensor has scales, dequantise it to fp32."""
        columns = self.tensor.shape[1]
        scale = (
            None
            if self.scale is None
            else _matrix(b"".join(TensorPiece(self.scale).chunks(self.scale.dtype)), self.scale)
        )
        row_bytes = columns * ITEM_BYTES[self.tensor.dtype]
        at = 0
        for chunk in self.tensor.chunks(BLOCK * max(row_bytes, 1), CHUNK // 2):
            self._check(chunk, self.tensor.dtype)
            values = torch.frombuffer(chunk, dtype=TYPES[self.tensor.dtype]).view(-1, columns)
            if scale is not None:
                rows, _ = blocks(values.shape)
                values = dequantize_blocks(values, scale[at : at + rows])
                at += rows
            yield values

    def _check(self, chunk: bytearray | memoryview, dtype: str) -> None:
        integer, mask = _EXPONENT[dtype]
        bits = np.frombuffer(chunk, integer) & integer(mask)
        if not bits.size or int(bits.max()) != mask:
            return
        if dtype == self.tensor.dtype or self.want == "scales":
            what, remedy = "holds NaN or infinity", "Download the checkpoint again: these weights are unusable."
        else:
            what = f"has values that {dtype} cannot hold"
            remedy = "Use a type with a wider range: dtype=bfloat16 or dtype=float32."
        raise NumericsError(f"{self.tensor.name} {what}", where=str(self.tensor.file), remedy=remedy)


def check_scale(weight: Stored, scale: Stored) -> None:
    """Raise CheckpointError if `scale` does not hold one F32 or BF16 scale per block of the matrix `weight`."""
    if len(weight.shape) != 2 or scale.shape != blocks(weight.shape) or scale.dtype not in ("F32", "BF16"):
        raise CheckpointError(
            f"{scale.name} is {scale.dtype} {scale.shape} and {weight.name} is {weight.shape}, but each "
            f"{BLOCK} x {BLOCK} block needs one scale",
            where=str(scale.file),
            remedy=f"Only FP8 with {BLOCK} x {BLOCK} blocks is supported. Convert the checkpoint to bfloat16 with the tool that "
            "wrote it.",
        )


def _matrix(data: bytes, stored: Stored) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=TYPES[stored.dtype]).view(stored.shape).float()


def _bytes(values: Tensor) -> memoryview:
    return values.contiguous().flatten().view(torch.uint8).numpy().data
