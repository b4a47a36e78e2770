"""Reading of GGUF files with the `gguf` package. The whole header is read at once, and the tensors are read in slices of
rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader
from torch import Tensor

from rorqual.convert.gguf_quant import READ, decode
from rorqual.convert.safetensors_slices import Bytes
from rorqual.core.errors import CheckpointError


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor of a GGUF file. `shape` has the tensor's outermost dimension first, as in torch. A vector [n] counts as n rows
    of one value.

    `raw` [rows, row bytes] is a view of the memory-mapped file.
    """

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    raw: Bytes
    where: str

    @property
    def columns(self) -> int:
        """Number of values in a row of the tensor."""
        return self.shape[-1] if len(self.shape) > 1 else 1

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the values of the tensor's rows `start` to `stop - 1`, as [rows, columns].

        Values of the types F32, F16 and BF16 keep their dtype. Values of quantised types are dequantised to fp32. Raises
        CheckpointError that names the tensor if a tensor value or a block scale is NaN or infinity.
        """
        values = decode(self.raw[start:stop], self.kind)
        if not bool(values.isfinite().all()):
            raise CheckpointError(
                f"tensor '{self.name}' holds NaN or infinity in rows {start} to {stop - 1}",
                where=self.where,
                remedy="The file or the original model is damaged: download it again.",
            )
        return values


@dataclass(frozen=True)
class GGUFFile:
    """The header keys and the tensors of a GGUF file, by name. `where` is the path of the GGUF file, for error messages."""

    keys: dict[str, Any]
    tensors: dict[str, GGUFTensor]
    where: str


class _Reader(GGUFReader):
    """A GGUFReader that refuses to read beyond the end of the GGUF file. For such a file, GGUFReader of the package
    `gguf` returns too few values and raises no error."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray[Any, Any]:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self.data):
            raise ValueError(f"it has {len(self.data):,} bytes, but its header names byte {end:,}")
        return super()._get(offset, dtype, count, override_order)


def read_gguf(path: Path) -> GGUFFile:
    """Read the header of the GGUF file `path` and map its tensors.

    Raises CheckpointError if the GGUF file is damaged or truncated, is one part of a split model, or has tensors of unsupported
    types.
    """
    where = str(path)
    try:
        reader = _Reader(path)
        keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        tensors = {tensor.name: _map_tensor(tensor, where) for tensor in reader.tensors}
    except (OSError, ValueError, LookupError, ArithmeticError, TypeError) as error:
        raise CheckpointError(
            f"cannot read: {error}",
            where=where,
            remedy="Give a whole GGUF file of version 2 or 3: download it again, or convert the model with a newer llama.cpp.",
        ) from None
    if reader.byte_order != "I":
        raise CheckpointError("the file is big-endian", where=where, remedy="Use a little-endian file.")
    if int(keys.get("split.count", 1) or 1) > 1:
        raise CheckpointError(
            "the file is one part of a split model",
            where=where,
            remedy="Join the parts with llama.cpp's `llama-gguf-split --merge`.",
        )
    for tensor in tensors.values():
        if tensor.kind.name not in READ:
            raise CheckpointError(
                f"tensor '{tensor.name}' has type {tensor.kind.name}, which is not supported",
                where=where,
                remedy=f"Use a file whose tensors have the types {', '.join(READ)}.",
            )
    return GGUFFile(keys, tensors, where)


def _map_tensor(tensor: Any, where: str) -> GGUFTensor:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    raw = tensor.data.reshape(math.prod(shape[:-1]) if len(shape) > 1 else shape[0], -1).view(np.uint8)
    return GGUFTensor(tensor.name, tensor.tensor_type, shape, raw, where)
