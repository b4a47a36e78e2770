"""Weights prepacked in oneDNN's layout: opaque tensors that only `times` and `plain` can read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = 16
"""Row count for which oneDNN chooses the layout."""
_NOTHING: list[Any] = []


def laid_out(weight: Tensor) -> Tensor:
    """Return a copy of weight [out, in] in oneDNN's layout. The weight must be on the CPU, in fp32 or bf16."""
    opaque: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
    return opaque


def plain(opaque: Tensor) -> Tensor:
    """Return a copy [out, in] in the plain layout."""
    dense: Tensor = opaque.to_dense()
    return dense


def times(x: Tensor, opaque: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x W^T + b without gradients: x [..., in] -> [..., out]."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, opaque, bias, "none", _NOTHING, "")
    return y
