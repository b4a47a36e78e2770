"""Tensors in safetensors files, read and written in slices of rows.

The safetensors library validates headers, but reads and writes only whole tensors. A safetensors file starts with the length n
of the header (eight bytes, little-endian) and n bytes of JSON, `{name: {dtype, shape, data_offsets}}`. The bytes of all tensors
follow the header without gaps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rorqual.core.errors import CheckpointError

CHUNK = 8 << 20
"""Size of a slice of a tensor in bytes. A conversion holds only a few slices in memory."""
FP8 = "F8_E4M3"
TYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    FP8: torch.float8_e4m3fn,
}
"""The supported dtypes of weights: the safetensors name of each dtype, mapped to the torch dtype."""
METADATA = "__metadata__"
Bytes = NDArray[np.uint8]
Progress = Callable[[int, int, str], None]
"""A progress callback. The arguments of the callback are the number of bytes done, the total number of bytes, and the name of
the current tensor."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to write. `dtype` is the safetensors name of the dtype, such as `BF16`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def item_bytes(self) -> int:
        """Size of one value of the tensor in bytes."""
        return TYPES[self.dtype].itemsize

    @property
    def n_bytes(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * self.item_bytes


@dataclass(frozen=True)
class StoredTensor(TensorSpec):
    """A tensor in a safetensors file, or a part of a tensor. The bytes of the tensor or part begin at the offset `begin` of
    `file`."""

    file: Path
    begin: int

    @property
    def n_rows(self) -> int:
        """Number of rows, which is the size of the tensor's first dimension. A scalar has one row, and a vector has rows of one
        value."""
        return self.shape[0] if self.shape else 1

    @property
    def columns(self) -> int:
        """Number of values in a row of the tensor."""
        return math.prod(self.shape[1:])

    def equal_part(self, index: int, count: int, shape: tuple[int, ...]) -> StoredTensor:
        """Split the tensor's bytes into `count` equal parts, and return the part with the index `index` as a tensor of the
        shape `shape`."""
        return replace(self, shape=shape, begin=self.begin + index * (self.n_bytes // count))

    def slices(self, size: int = CHUNK, multiple: int = 1) -> Iterator[tuple[int, int]]:
        """Yield row ranges (start, stop) that together cover all rows. Each range has at most `size` bytes if possible.

        The number of rows in each range, except the last, is a multiple of `multiple`. If `multiple` rows have more than
        `size` bytes, each range except the last has exactly `multiple` rows.
        """
        step = max(size // max(self.columns * self.item_bytes, 1) // multiple, 1) * multiple
        for start in range(0, self.n_rows if self.columns else 0, step):
            yield start, min(start + step, self.n_rows)

    def rows(self, start: int, stop: int) -> Tensor:
        """Read the tensor's rows `start` to `stop - 1` as [rows, columns]."""
        row = self.columns * self.item_bytes
        data = np.fromfile(self.file, np.uint8, (stop - start) * row, offset=self.begin + start * row)
        return torch.from_numpy(data).view(TYPES[self.dtype]).view(stop - start, self.columns)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name, in the order of the tensors' bytes. Only the header of the file is
    read.

    Raises CheckpointError if the safetensors library refuses the header: for example, if tensors overlap or leave gaps, if the
    size of a tensor does not match its shape, or if the file is truncated.
    """
    try:
        with safe_open(file, "np"), open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read: {error}",
            where=str(file),
            remedy="Check the path. If the file is there, download it again: it is damaged or not a safetensors file.",
        ) from None
    header.pop(METADATA, None)
    tensors = [
        StoredTensor(name, entry["dtype"], tuple(entry["shape"]), file, 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    ]
    return {tensor.name: tensor for tensor in sorted(tensors, key=lambda tensor: tensor.begin)}


def sort_by_item_size(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """Sort tensors by item size, largest first, so that each tensor's bytes start at a multiple of the tensor's item size."""
    return sorted(specs, key=lambda spec: -spec.item_bytes)


def header_bytes(specs: Sequence[TensorSpec]) -> bytes:
    """Return the first bytes of a safetensors file with the tensors `specs`: the header's length and the header, padded to a
    multiple of 8 bytes."""
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
    at = 0
    for spec in specs:
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [at, at + spec.n_bytes]}
        at += spec.n_bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_tensors(file: Path, specs: Iterable[TensorSpec], chunks: Callable[[TensorSpec], Iterable[Bytes]]) -> int:
    """Write a safetensors file, sync it to disk, and return its size in bytes.

    `chunks(spec)` yields the bytes of the tensor `spec` in order. Raises ValueError if the number of yielded bytes differs from
    the tensor's size.
    """
    specs = sort_by_item_size(specs)
    with open(file, "wb") as stream:
        stream.write(header_bytes(specs))
        for spec in specs:
            written = sum(stream.write(chunk.data) for chunk in chunks(spec))
            if written != spec.n_bytes:
                raise ValueError(f"{spec.name}: {written} bytes written, {spec.n_bytes} expected")
        stream.flush()
        os.fsync(stream.fileno())
        return stream.tell()
