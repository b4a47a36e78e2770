"""Writing of GGUF files with the `gguf` package. The whole header is written at once, and the tensors are written in slices."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.quants import quant_shape_to_byte_shape

from rorqual.convert.safetensors_slices import Bytes, Progress
from rorqual.core.errors import RorqualError
from rorqual.core.lock import acquire_lock


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write. `shape` has the tensor's outermost dimension first, as in torch. `chunks` yields the tensor's bytes in
    order."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Bytes]]

    @property
    def n_bytes(self) -> int:
        """Size of the tensor in bytes, without padding."""
        return math.prod(quant_shape_to_byte_shape(self.shape, self.kind))


class _Writer(GGUFWriter):
    """A GGUFWriter that also writes empty lists. llama.cpp requires a list of merges, but the merges of a byte tokenizer are an
    empty list."""

    def _pack_val(self, val: Any, vtype: GGUFValueType, *args: Any, **how: Any) -> bytes:
        if val == [] and vtype == GGUFValueType.ARRAY:
            return struct.pack("<IIQ", vtype, GGUFValueType.STRING, 0)
        return super()._pack_val(val, vtype, *args, **how)


def write_gguf(
    dst: Path, architecture: str, keys: Mapping[str, Any], tensors: Sequence[PlannedTensor], progress: Progress
) -> None:
    """Write a GGUF file. Integers in the header are written as uint32, and lists in the header as arrays of strings or int32.

    The file `dst` appears only when all tensors are written.
    """
    done, total = 0, sum(tensor.n_bytes for tensor in tensors)
    temporary = dst.with_name(f".{dst.name}.part")
    writer = _Writer(temporary, architecture)
    for key, value in keys.items():
        kind = GGUFValueType.UINT32 if type(value) is int else GGUFValueType.get_type(value)
        writer.add_key_value(key, value, kind)
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.n_bytes, tensor.kind)
    try:
        with acquire_lock(dst, "Wait for it, or choose another file."):
            for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_ti_data_to_file):
                step()
            (file,) = writer.fout or []
            writer.write_padding(file, file.tell())
            for tensor in tensors:
                progress(done, total, tensor.name)
                for chunk in tensor.chunks():
                    file.write(chunk.data)
                writer.write_padding(file, tensor.n_bytes)
                done += tensor.n_bytes
            progress(done, total, "")
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, dst)
    except OSError as error:
        raise RorqualError(
            f"cannot write: {error.strerror}", where=str(dst), remedy="Free disk space or choose another folder."
        ) from error
    finally:
        with suppress(OSError):
            writer.close()
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
