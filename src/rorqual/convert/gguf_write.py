"""A writer for GGUF headers (ggml's docs/gguf.md, version 3).

The writer of the `gguf` package is not used, because it omits empty lists. A byte-only tokenizer has an empty list of merges,
and llama.cpp requires this list.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf import GGUFValueType

from rorqual.convert.gguf_quant import Format
from rorqual.convert.gguf_read import MAGIC

ALIGNMENT = 32
"""Alignment of tensors in bytes. GGUF's default has the same value."""


@dataclass(frozen=True)
class Planned:
    """A tensor to write. `shape` has the outermost dimension first, as in torch."""

    name: str
    format: Format
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Size in bytes, without padding."""
        size = self.format.row_bytes(self.shape[-1])
        for rows in self.shape[:-1]:
            size *= rows
        return size


def padding(size: int) -> bytes:
    """Return the zero bytes that pad `size` bytes to a multiple of `ALIGNMENT`."""
    return bytes(-size % ALIGNMENT)


def header_bytes(keys: Mapping[str, Any], tensors: Sequence[Planned]) -> bytes:
    """Return the header of a GGUF file, with the padding before the first tensor.

    Integers are written as uint32, and lists as arrays of strings or int32.
    """
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(keys))]
    for key, value in keys.items():
        parts += (_text(key), _value(value))
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        info = struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.format.code, offset)
        parts += (_text(tensor.name), info)
        offset += tensor.size + len(padding(tensor.size))
    header = b"".join(parts)
    return header + padding(len(header))


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", GGUFValueType.BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", GGUFValueType.UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", GGUFValueType.FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", GGUFValueType.STRING) + _text(value)
    if value and isinstance(value[0], int):
        head = struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.INT32, len(value))
        return head + struct.pack(f"<{len(value)}i", *value)
    head = struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.STRING, len(value))
    return head + b"".join(map(_text, value))
