"""Encoding and decoding of GGUF's tensor types. The functions convert complete rows, so a tensor can be converted in slices.

The byte layouts are ggml's `block_q8_0`, `block_q4_0`, ... (ggml-common.h). A block stores `block` adjacent values of one row
in `size` bytes: fp16 scales and the packed quantised values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from rorqual.core.errors import CheckpointError, nearest

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Format:
    """A tensor type of GGUF, which stores `block` values in `size` bytes.

    `dtype` is the torch dtype of an unquantised type, and None for a quantised type.
    """

    name: str
    block: int
    size: int
    dtype: torch.dtype | None = None

    @property
    def code(self) -> int:
        """The number of this type in GGUF files."""
        return int(GGMLQuantizationType[self.name])

    def row_bytes(self, columns: int) -> int:
        """Return the size in bytes of a row of `columns` values. `columns` must be a multiple of `block`."""
        return columns // self.block * self.size


def _formats() -> Mapping[str, Format]:
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    sizes = {n: GGML_QUANT_SIZES[GGMLQuantizationType[n]] for n in (*dtypes, "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")}
    return MappingProxyType({name: Format(name, *size, dtypes.get(name)) for name, size in sizes.items()})


FORMATS = _formats()
"""The tensor types that import supports, by name."""

WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
"""Names of the tensor types that export supports."""

_SAME = MappingProxyType({"float32": "F32", "float16": "F16", "bfloat16": "BF16"})


def written_format(name: str) -> Format:
    """Return the tensor type with the GGUF or torch name `name`. Raises CheckpointError if export does not support the type."""
    upper = _SAME.get(name.lower(), name.upper())
    if upper not in WRITTEN:
        raise CheckpointError(f"GGUF export does not support {name!r}", where="dtype", remedy=nearest(upper, WRITTEN))
    return FORMATS[upper]


def read_format(code: int, tensor: str, where: str) -> Format:
    """Return the tensor type with the number `code`. Raises a CheckpointError that names the type if import does not support it."""
    known = {format_.code: format_ for format_ in FORMATS.values()}
    if code not in known:
        names = {int(kind): kind.name for kind in GGMLQuantizationType}
        raise CheckpointError(
            f"tensor '{tensor}' has type {names.get(code, code)}, which is not supported",
            where=where,
            remedy=f"Use a file whose tensors have the types {', '.join(FORMATS)}.",
        )
    return known[code]


def decode(raw: Bytes, format_: Format) -> Tensor:
    """Decode bytes [rows, row bytes] to values [rows, columns].

    F32, F16 and BF16 keep their dtype. Quantised types are dequantised to fp32.
    """
    if format_.dtype is not None:
        # Copy, because torch needs writable memory and the file is mapped read-only.
        return torch.from_numpy(np.array(raw)).view(format_.dtype)
    blocks = raw.reshape(-1, format_.size)
    unpack = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q4_K": _q4_k, "Q6_K": _q6_k}[format_.name]
    with np.errstate(invalid="ignore"):  # the caller checks for NaN and names the tensor
        return torch.from_numpy(unpack(blocks).reshape(raw.shape[0], -1))


def encode(values: Tensor, format_: Format) -> Bytes:
    """Encode values [rows, columns] to bytes [rows, row bytes]. `columns` must be a multiple of the block size."""
    if format_.dtype is not None:
        return values.to(format_.dtype).contiguous().view(torch.uint8).numpy()
    blocks = values.float().contiguous().numpy().reshape(-1, format_.block)
    packed = {"Q8_0": _to_q8_0, "Q4_0": _to_q4_0}[format_.name](blocks)
    return packed.reshape(values.shape[0], -1)


def _half(raw: Bytes) -> Floats:
    """Convert the bytes [blocks, 2 n] of fp16 numbers to fp32 [blocks, n]."""
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _nibbles(raw: Bytes) -> Bytes:
    """Unpack bytes [..., n] to nibbles [..., 2 n]: first the low nibbles of all bytes, then the high nibbles."""
    return np.concatenate((raw & np.uint8(15), raw >> np.uint8(4)), axis=-1)


def _q8_0(blocks: Bytes) -> Floats:
    # Layout: an fp16 scale, then 32 signed bytes.
    return np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32) * _half(blocks[:, :2])


def _q4_0(blocks: Bytes) -> Floats:
    # Layout: an fp16 scale, then 32 nibbles that store -8 to 7 as 0 to 15.
    return (_nibbles(blocks[:, 2:]).astype(np.float32) - np.float32(8)) * _half(blocks[:, :2])


def _q4_1(blocks: Bytes) -> Floats:
    # Layout: an fp16 scale and an fp16 minimum, then 32 nibbles that are offsets from the minimum.
    return _nibbles(blocks[:, 4:]).astype(np.float32) * _half(blocks[:, :2]) + _half(blocks[:, 2:4])


def _q4_k(blocks: Bytes) -> Floats:
    """Decode blocks of 256 values in 8 groups of 32 values.

    Each group has a 6-bit scale and a 6-bit minimum, which are multiplied by the fp16 scale and the fp16 minimum of the block.
    """
    scale, minimum = _half(blocks[:, :2]), _half(blocks[:, 2:4])
    packed = blocks[:, 4:16]
    low, mid, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    # Groups 0-3 use the low 6 bits of bytes 0-7. Groups 4-7 use 4 bits of bytes 8-11 and the 2 high bits of bytes 0-7.
    scales = np.concatenate((low & 63, (high & 15) | (low >> 6) << 4), axis=1).astype(np.float32)
    minima = np.concatenate((mid & 63, (high >> 4) | (mid >> 6) << 4), axis=1).astype(np.float32)
    quants = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32).astype(np.float32)
    return (scale * scales)[..., None] * quants - (minimum * minima)[..., None]


def _q6_k(blocks: Bytes) -> Floats:
    """Decode blocks of 256 values in 16 groups of 16 values.

    Each group has an 8-bit scale. The low 4 bits and the high 2 bits of the values are stored separately.
    """
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32) * _half(blocks[:, 208:210])
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    high = (high >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)) & np.uint8(3)
    quants = (low | high << np.uint8(4)).astype(np.float32) - np.float32(32)
    return quants.reshape(-1, 16, 16) * scales[..., None]


def _inverse(scale: Floats) -> Floats:
    """Return 1 / scale, or 0 for a block of zeros."""
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)


def _to_q8_0(blocks: Floats) -> Bytes:
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(scale)
    integer = np.trunc(scaled)
    rounded = integer + np.trunc(np.float32(2) * (scaled - integer))  # round half away from zero, like C's roundf
    return np.concatenate((scale.astype(np.float16).view(np.uint8), rounded.astype(np.int8).view(np.uint8)), axis=1)


def _to_q4_0(blocks: Floats) -> Bytes:
    # The value with the largest magnitude is stored as -8, whatever its sign, so its only error is the scale's fp16 rounding.
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    scale = extreme / np.float32(-8)
    quants = np.trunc(blocks * _inverse(scale) + np.float32(8.5)).astype(np.uint8).clip(0, 15)
    packed = quants[:, :16] | quants[:, 16:] << np.uint8(4)
    return np.concatenate((scale.astype(np.float16).view(np.uint8), packed), axis=1)
