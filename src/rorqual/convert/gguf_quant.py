"""Encoding and decoding of GGUF's tensor types by the `gguf` package. Each call converts whole rows, so a tensor can be
converted in slices of rows."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from torch import Tensor

from rorqual.convert.safetensors_slices import Bytes
from rorqual.core.errors import CheckpointError, suggest_name
from rorqual.ops.quant import fit_4_bits

PLAIN: Mapping[str, torch.dtype] = MappingProxyType(
    {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
)
"""The GGUF tensor types without quantisation, with their torch dtypes."""
READ = (*PLAIN, "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
"""Names of the GGUF tensor types that import supports."""
WRITTEN = (*PLAIN, "Q8_0", "Q4_0", "Q4_1")
"""Names of the GGUF tensor types that export supports."""
_SAME = MappingProxyType({"float32": "F32", "float16": "F16", "bfloat16": "BF16"})


def written_type(name: str) -> GGMLQuantizationType:
    """Return the GGUF tensor type with the GGUF name or torch name `name`. Raises CheckpointError if export does not support
    this tensor type."""
    upper = _SAME.get(name.lower(), name.upper())
    if upper not in WRITTEN:
        raise CheckpointError(
            f"GGUF export does not support {name!r}", where="dtype", remedy=suggest_name(upper, WRITTEN)
        )
    return GGMLQuantizationType[upper]


def block_size(kind: GGMLQuantizationType) -> int:
    """Return the number of adjacent values of a row that share a scale. The number of values in a row must be a multiple of the
    block size."""
    return GGML_QUANT_SIZES[kind][0]


def decode(raw: Bytes, kind: GGMLQuantizationType) -> Tensor:
    """Decode bytes [rows, row bytes] to values [rows, columns].

    Values of the types F32, F16 and BF16 keep their dtype. Values of quantised types are dequantised to fp32.
    """
    if kind.name in PLAIN:
        return torch.from_numpy(np.array(raw)).view(PLAIN[kind.name])  # copied, because the file is mapped read-only
    with np.errstate(invalid="ignore"):  # the caller checks for NaN and names the tensor
        return torch.from_numpy(dequantize(raw, kind))


def encode(values: Tensor, kind: GGMLQuantizationType) -> Bytes:
    """Encode values [rows, columns] to bytes [rows, row bytes]. `columns` must be a multiple of the `block_size` of `kind`.

    Q4_1 is encoded as the kernels' weights of 4 bits are.
    """
    if kind.name == "Q4_1":
        quants, *halves = fit_4_bits(values.float().unflatten(-1, (-1, 32)))
        both = quants[..., :16] | quants[..., 16:] << 4
        return torch.cat([*(half.unsqueeze(-1).view(torch.uint8) for half in halves), both], -1).flatten(-2).numpy()
    return quantize(values.float().contiguous().numpy(), kind).view(np.uint8)
