"""A reader for GGUF files. The reader validates the header strictly and reads tensors in slices.

Every count, length and offset is checked against the file size before it is used. The reader of the `gguf` package is not used,
because it trusts the header and creates three objects per string. Format: ggml's docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType
from torch import Tensor

from rorqual.convert.gguf_quant import Bytes, Format, decode, read_format
from rorqual.core.errors import CheckpointError

MAGIC = b"GGUF"
HEADER_LIMIT = 1 << 27
"""Maximum header size in bytes. The header of the model with the largest known vocabulary has a tenth of this size."""

_SCALARS: Mapping[int, str] = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "|b1",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor in a GGUF file. `shape` has the outermost dimension first, as in torch.

    `offset` is the position of the tensor's first byte in the file.
    """

    name: str
    format: Format
    shape: tuple[int, ...]
    offset: int

    @property
    def rows(self) -> int:
        """Number of rows: the product of all dimensions except the last, or 1 for a vector."""
        rows = 1
        for size in self.shape[:-1]:
            rows *= size
        return rows

    @property
    def row_bytes(self) -> int:
        """Size of one row in bytes."""
        return self.format.row_bytes(self.shape[-1])

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes, without padding."""
        return self.rows * self.row_bytes


class GGUFFile:
    """An open GGUF file. Opening reads only the header (`keys` and `tensors`); tensor rows are read on request."""

    def __init__(self, mapped: mmap.mmap, where: str) -> None:
        self.where, self._mapped = where, mapped
        header = _Header(mapped, where)
        self.keys, self.tensors = header.keys, header.tensors
        self._data = np.frombuffer(mapped, np.uint8)

    def raw(self, tensor: GGUFTensor, start: int, stop: int) -> Bytes:
        """Return the bytes of the rows `start` to `stop - 1`, shape [rows, row bytes], as a view of the memory map."""
        first = tensor.offset + start * tensor.row_bytes
        return self._data[first : first + (stop - start) * tensor.row_bytes].reshape(stop - start, tensor.row_bytes)

    def rows(self, tensor: GGUFTensor, start: int, stop: int) -> Tensor:
        """Return the values of the rows `start` to `stop - 1`, shape [rows, columns].

        F32, F16 and BF16 keep their dtype. Quantised types are dequantised to fp32. Raises a CheckpointError that names the
        tensor if a value or a block scale is NaN or infinity.
        """
        values = decode(self.raw(tensor, start, stop), tensor.format)
        if not bool(values.isfinite().all()):
            raise CheckpointError(
                f"tensor '{tensor.name}' holds NaN or infinity in rows {start} to {stop - 1}",
                where=self.where,
                remedy="The file or the original model is damaged: download it again.",
            )
        return values


@contextmanager
def open_gguf(path: Path) -> Iterator[GGUFFile]:
    """Open the GGUF file `path` as a memory map. Raises CheckpointError if the file is not a complete GGUF file."""
    try:
        with open(path, "rb") as file:
            if file.read(4) != MAGIC:
                raise CheckpointError(
                    "not a GGUF file: it does not begin with 'GGUF'", where=str(path), remedy="Give a .gguf file."
                )
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"cannot read: {error.strerror}", where=str(path), remedy="Give a .gguf file.") from None
    yield GGUFFile(mapped, str(path))  # the map stays open as long as an array uses it


class _Header:
    """A parser of GGUF headers. The parser checks every length against the file size before using it."""

    def __init__(self, data: mmap.mmap, where: str) -> None:
        self._data, self.where, self._at = data, where, len(MAGIC)
        version = self._number("<I", "version")
        if version not in (2, 3):
            raise self._error(
                f"GGUF version {version} is not supported: the file must have version 2 or 3 and be little-endian",
                "Convert the model with a newer llama.cpp.",
            )
        n_tensors, n_keys = self._number("<Q", "count of tensors"), self._number("<Q", "count of keys")
        self._fits(n_tensors, 24, f"{n_tensors} tensors")
        self._fits(n_keys, 13, f"{n_keys} keys")
        self.keys: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._text("a key")
            if key in self.keys:
                raise self._error(f"key '{key}' occurs twice")
            self.keys[key] = self._value(self._number("<I", f"type of '{key}'"), key)
        if int(self.keys.get("split.count", 1) or 1) > 1:
            raise self._error(
                "the file is one part of a split model", "Join the parts with llama.cpp's `llama-gguf-split --merge`."
            )
        self.tensors: dict[str, GGUFTensor] = {}
        self._tensors(n_tensors)

    def _error(
        self, what: str, remedy: str = "Download the file again: it is damaged or truncated."
    ) -> CheckpointError:
        return CheckpointError(what, where=self.where, remedy=remedy)

    def _fits(self, count: int, size: int, what: str) -> None:
        """Raise CheckpointError unless `count` items of at least `size` bytes fit into the file and the header limit."""
        end = self._at + count * size
        if end > len(self._data):
            raise self._error(f"{what} at byte {self._at} do not fit into the file's {len(self._data)} bytes")
        if end > HEADER_LIMIT:
            raise self._error(f"the header is larger than {HEADER_LIMIT >> 20} MiB ({what})")

    def _number(self, code: str, what: str) -> int:
        size = struct.calcsize(code)
        self._fits(1, size, what)
        (value,) = struct.unpack_from(code, self._data, self._at)
        self._at += size
        return int(value)

    def _text(self, what: str) -> str:
        length = self._number("<Q", f"length of {what}")
        self._fits(length, 1, f"{length} bytes of {what}")
        start, self._at = self._at, self._at + length
        try:
            return self._data[start : self._at].decode("utf-8")
        except UnicodeDecodeError:
            raise self._error(f"{what} at byte {start} is not UTF-8") from None

    def _texts(self, count: int, key: str) -> list[str]:
        # A vocabulary has about 100,000 strings, so parse them in one loop without a function call per length.
        self._fits(count, 8, f"{count} strings of '{key}'")
        data, at, length_at = self._data, self._at, struct.Struct("<Q").unpack_from
        limit = min(len(data), HEADER_LIMIT)
        texts = []
        for _ in range(count):
            (length,) = length_at(data, at) if at + 8 <= limit else (limit,)
            at += 8 + length
            if at > limit:
                raise self._error(
                    f"the strings of '{key}' do not fit into the file or the header limit of {HEADER_LIMIT >> 20} MiB"
                )
            texts.append(data[at - length : at])
        self._at = at
        try:
            return [text.decode("utf-8") for text in texts]
        except UnicodeDecodeError as error:
            raise self._error(f"a string of '{key}' is not UTF-8: {error.reason}") from None

    def _value(self, kind: int, key: str) -> Any:
        if kind == GGUFValueType.STRING:
            return self._text(f"'{key}'")
        if kind == GGUFValueType.ARRAY:
            item_kind, count = self._number("<I", f"type of '{key}'"), self._number("<Q", f"length of '{key}'")
            if item_kind == GGUFValueType.STRING:
                return self._texts(count, key)
            return self._scalars(item_kind, count, key)
        return self._scalars(kind, 1, key)[0]

    def _scalars(self, kind: int, count: int, key: str) -> list[Any]:
        if kind not in _SCALARS:
            raise self._error(f"key '{key}' has a value of unknown type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        self._fits(count, dtype.itemsize, f"{count} values of '{key}'")
        values = np.frombuffer(self._data, dtype, count, self._at).tolist()
        self._at += count * dtype.itemsize
        return list(values)

    def _tensors(self, count: int) -> None:
        declared = []
        for _ in range(count):
            name = self._text("a tensor's name")
            n_dims = self._number("<I", f"dimensions of '{name}'")
            if not 1 <= n_dims <= 4:
                raise self._error(f"tensor '{name}' has {n_dims} dimensions")
            shape = tuple(self._number("<Q", f"shape of '{name}'") for _ in range(n_dims))[::-1]
            format_ = read_format(self._number("<I", f"type of '{name}'"), name, self.where)
            offset = self._number("<Q", f"offset of '{name}'")
            if min(shape) < 1 or shape[-1] % format_.block:
                raise self._error(f"tensor '{name}' has shape {shape}, which {format_.name} does not support")
            declared.append(GGUFTensor(name, format_, shape, offset))
        alignment = self.keys.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._error(f"key 'general.alignment' is {alignment!r}, not a power of two")
        start = -(-self._at // alignment) * alignment
        end = start
        for tensor in sorted(declared, key=lambda tensor: tensor.offset):
            placed = GGUFTensor(tensor.name, tensor.format, tensor.shape, start + tensor.offset)
            if tensor.offset % alignment or placed.offset < end:
                raise self._error(
                    f"tensor '{tensor.name}' overlaps another tensor or is not aligned to {alignment} bytes"
                )
            end = placed.offset + placed.nbytes
            if end > len(self._data):
                raise self._error(
                    f"truncated: tensor '{tensor.name}' ends at byte {end}, but the file has {len(self._data)} bytes"
                )
            self.tensors[tensor.name] = placed
        if len(self.tensors) != count:
            raise self._error("two tensors have the same name")
