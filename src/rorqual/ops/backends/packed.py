"""Weights prepacked in oneDNN's blocked layout, for inference-only copies.

A plain product repacks the weight at every call, which for few rows takes as long as the product itself.

In bf16, engine steps give the same bits with and without packing (`Torch` without a cache agrees within rounding). In
fp32, sums over more than a few hundred columns are split differently. There an engine with packed weights differs from
one without in the last bits, and each agrees with itself.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from rorqual.ops.backends.base import Backend, Matrices
from rorqual.ops.layer import LinearMap
from rorqual.ops.layout import laid_out, plain, times
from rorqual.ops.rows import in_tiles

SMALLEST = 1 << 16
"""Smallest number of weight values for which packing pays."""


class Packing(Backend):
    """A backend that prepacks weights if this torch and this machine support the layout."""

    def prepares(self, model: nn.Module) -> bool:
        weight = next(model.parameters())
        return (
            weight.device.type == "cpu"
            and weight.dtype in (torch.float32, torch.bfloat16)
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        )

    def prepare_linear(self, weight: Tensor, bias: Tensor | None) -> nn.Module | None:
        return PackedLinear(weight, bias) if weight.numel() >= SMALLEST else None

    def prepare_experts(self, gate_up: Tensor, down: Tensor) -> tuple[Matrices, Matrices] | None:
        if down[0].numel() < SMALLEST:
            return None
        return [laid_out(weight) for weight in gate_up], [laid_out(weight) for weight in down]


class PackedLinear(LinearMap):
    """A linear map y = x W^T + b without gradients. It stores weight [out, in] only in oneDNN's layout.

    `most` is the most wide rows multiplied at once (`ops.rows`).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.shape, self.dtype, self.most = tuple(weight.shape), weight.dtype, 0
        self._bias = None if bias is None else bias.detach()
        self._packed = laid_out(weight)

    @property
    def weight(self) -> Tensor:
        """A copy of the weight [out, in] in the plain layout."""
        return plain(self._packed)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        return in_tiles(partial(times, opaque=self._packed, bias=self._bias), x, self.most)
