"""Prepack weights in oneDNN's blocked layout. Prepacked tensors are opaque: only `prepacked_linear` and `to_plain_layout` can read them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = 16
"""Number of input rows of the matrix product for which oneDNN chooses the blocked layout."""
_NOTHING: list[Any] = []


def prepack(weight: Tensor) -> Tensor:
    """Return a prepacked copy of weight [out, in]. `weight` must be on the CPU, in fp32 or bf16."""
    opaque: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
    return opaque


def to_plain_layout(opaque: Tensor) -> Tensor:
    """Return a copy of a prepacked weight in the plain layout [out, in]."""
    dense: Tensor = opaque.to_dense()
    return dense


def prepacked_linear(x: Tensor, opaque: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x W^T + b for a prepacked W: x [..., in] -> [..., out]. `prepacked_linear` does not support gradients."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, opaque, bias, "none", _NOTHING, "")
    return y
