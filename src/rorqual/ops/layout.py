"""Weights in the layout that oneDNN's products read: opaque tensors that only `times` and `plain` know what to do with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = 16
"""Rows of a product that the layout is chosen for."""
_NOTHING: list[Any] = []


def laid_out(weight: Tensor) -> Tensor:
    """weight [out, in], on the CPU, in fp32 or bf16: a copy in oneDNN's layout."""
    opaque: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
    return opaque


def plain(opaque: Tensor) -> Tensor:
    """[out, in], a copy in the usual layout."""
    dense: Tensor = opaque.to_dense()
    return dense


def times(x: Tensor, opaque: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b without gradients: x [..., in] -> [..., out]."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, opaque, bias, "none", _NOTHING, "")
    return y
