"""A reader and a writer for safetensors files. Tensors are processed in slices, and the reader validates the header.

A file starts with the length n of the header (eight bytes, little-endian) and n bytes of JSON,
`{name: {dtype, shape, data_offsets}}`. The bytes of all tensors follow the JSON without gaps. Source: the safetensors
format description.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rorqual.core.errors import CheckpointError

CHUNK = 8 << 20
"""Size of a slice in bytes. A conversion holds only a few slices in memory."""
MAX_HEADER = 100_000_000
"""Maximum header size in bytes, as in the safetensors library. DeepSeek-V3's largest header has 0.1 million bytes."""
ITEM_BYTES: Mapping[str, int] = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
METADATA = "__metadata__"
Progress = Callable[[int, int, str], None]
"""A progress callback. The arguments are the bytes done, the total bytes, and the name of the current tensor."""
_REMEDY = "Download the file again: it is damaged or not a safetensors file."


@dataclass(frozen=True)
class Spec:
    """A tensor to write. `dtype` is the safetensors name of the dtype, such as `BF16`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Stored(Spec):
    """A tensor in a file, or a part of a tensor. The bytes begin at the offset `begin` of `file`."""

    file: Path
    begin: int

    def part(self, index: int, count: int, shape: tuple[int, ...]) -> Stored:
        """Split the bytes into `count` equal parts and return the part `index` as a tensor of the shape `shape`."""
        part = replace(self, shape=shape, begin=self.begin + index * (self.size // count))
        if part.size * count != self.size:
            raise ValueError(f"{self.name}: {count} parts of shape {shape} do not add up to shape {self.shape}")
        return part

    def chunks(self, multiple: int = 8, size: int = CHUNK) -> Iterator[bytearray]:
        """Yield the bytes in order, in chunks of at most `size` bytes.

        The number of bytes in every chunk except the last is divisible by `multiple`. A chunk exceeds `size` only if `multiple`
        exceeds `size`.
        """
        step = max(size // multiple, 1) * multiple
        with open(self.file, "rb", buffering=0) as file:
            for start in range(0, self.size, step):
                chunk = bytearray(min(step, self.size - start))
                view, at = memoryview(chunk), 0
                while at < len(chunk):
                    read = os.preadv(file.fileno(), [view[at:]], self.begin + start + at)
                    if not read:
                        raise CheckpointError(
                            f"{self.name} is truncated: the file became shorter during the read",
                            where=str(self.file),
                            remedy="Repeat the command when no other process writes to the file.",
                        )
                    at += read
                yield chunk


def strict_json(data: bytes, where: str, remedy: str) -> dict[str, Any]:
    """Parse a JSON object. Raises CheckpointError for duplicate keys, NaN, infinity, and a value that is not an object."""

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"key {twice!r} occurs twice")
        return parsed

    def refuse_constant(text: str) -> Any:
        raise ValueError(f"{text} is not a JSON number")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique_keys, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"invalid JSON: {error}", where=where, remedy=remedy) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"a JSON {type(value).__name__}, not an object", where=where, remedy=remedy)
    return value


def read_header(file: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file by name, in the order of their bytes. Only the header is read.

    Raises CheckpointError for a header that is longer than the file or than `MAX_HEADER`, for duplicate names, for an unknown
    dtype, and for a size that does not match the shape. Raises CheckpointError if tensors overlap or leave gaps, or if the
    last tensor does not end at the end of the file.
    """
    where = str(file)
    try:
        with open(file, "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError("not a regular file", where=where, remedy=_REMEDY)
            length = int.from_bytes(stream.read(8), "little")
            if status.st_size < 8 or length > min(status.st_size - 8, MAX_HEADER):
                raise CheckpointError(
                    f"the header claims {length:,} bytes; the file has {status.st_size:,}, and the limit is {MAX_HEADER:,}",
                    where=where,
                    remedy=_REMEDY,
                )
            header = strict_json(stream.read(length), where, _REMEDY)
    except OSError as error:
        raise CheckpointError(f"cannot read: {error.strerror}", where=where, remedy="Check the path.") from None
    header.pop(METADATA, None)
    tensors = [_stored(name, entry, file, 8 + length) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.begin + tensor.size))
    end = 8 + length
    for tensor in tensors:
        if tensor.begin != end:
            fault = (
                "overlaps the tensor before it" if tensor.begin < end else f"leaves {tensor.begin - end} bytes unused"
            )
            raise CheckpointError(f"{tensor.name} {fault}", where=where, remedy=_REMEDY)
        end += tensor.size
    if end != status.st_size:
        fault = (
            f"truncated: {status.st_size:,} bytes of {end:,}" if end > status.st_size else "bytes after the last tensor"
        )
        raise CheckpointError(fault, where=where, remedy=_REMEDY)
    return {tensor.name: tensor for tensor in tensors}


def _stored(name: str, entry: Any, file: Path, data: int) -> Stored:
    def wrong(what: str) -> CheckpointError:
        return CheckpointError(f"{name}: {what}", where=str(file), remedy=_REMEDY)

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong("the header entry does not have exactly the keys dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise wrong(f"type {dtype!r} is not one of {', '.join(ITEM_BYTES)}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise wrong(
            f"shape {shape!r} must be a list of non-negative integers, and data_offsets {offsets!r} two such integers"
        )
    tensor = Stored(name, dtype, tuple(shape), file, data + offsets[0])
    if tensor.size != offsets[1] - offsets[0]:
        raise wrong(
            f"{dtype} of shape {shape} has {tensor.size:,} bytes, but data_offsets span {offsets[1] - offsets[0]:,} bytes"
        )
    return tensor


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)


def layout(specs: Iterable[Spec]) -> list[Spec]:
    """Sort tensors by item size, largest first, so that each tensor starts at a multiple of its item size."""
    return sorted(specs, key=lambda spec: -ITEM_BYTES[spec.dtype])


def header_bytes(specs: Sequence[Spec], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the first bytes of a file with the tensors `specs`: the length and the header, padded to a multiple of 8."""
    header: dict[str, Any] = {METADATA: dict(metadata or {"format": "pt"})}
    at = 0
    for spec in specs:
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [at, at + spec.size]}
        at += spec.size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_tensors(
    file: Path, specs: Iterable[Spec], chunks: Callable[[Spec], Iterable[bytes | bytearray | memoryview]]
) -> int:
    """Write a safetensors file and return its size in bytes. `chunks(spec)` yields the bytes of a tensor in order.

    The file appears only when it is complete and synced to disk. A failed write leaves no file. Raises ValueError if the chunks
    of a tensor do not add up to its size, and OSError if the file cannot be written.
    """
    specs = layout(specs)
    if len({spec.name for spec in specs}) < len(specs):
        raise ValueError("two tensors have the same name")
    temporary = file.with_name(f".{file.name}.part")
    try:
        with open(temporary, "wb", buffering=0) as stream:
            _write(stream.fileno(), header_bytes(specs), file)
            for spec in specs:
                written = sum(_write(stream.fileno(), chunk, file) for chunk in chunks(spec))
                if written != spec.size:
                    raise ValueError(f"{spec.name}: {written} bytes written, {spec.size} expected")
            os.fsync(stream.fileno())
            size = os.fstat(stream.fileno()).st_size
        os.replace(temporary, file)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return size


def _write(descriptor: int, data: bytes | bytearray | memoryview, file: Path) -> int:
    """Write all bytes of `data` and return their number. A single `os.write` may write only some of the bytes. An OSError names `file`."""
    view = memoryview(data).cast("B")
    at = 0
    try:
        while at < len(view):
            at += os.write(descriptor, view[at:])
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from None
    return at
