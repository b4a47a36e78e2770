"""Weights in oneDNN's blocked layout, for copies of a model that nobody trains.

A plain product brings a weight into that layout at every call, which at few rows takes as long as the product itself.
Bits: in bf16 the same as without, in an engine's steps (`Torch` without a cache agrees within rounding); in fp32 sums over more than some
hundred columns are cut in another way, so that an engine with packed weights and one without differ in their last bits, and each agrees with
itself.
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
"""Values of a weight from which on packing pays."""


class Packing(Backend):
    """A backend that packs where this torch and this machine have the layout."""

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
    """y = x W^T + b without gradients; weight [out, in] is kept in oneDNN's layout alone. `most`: wide rows at once (`ops.rows`)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.shape, self.dtype, self.most = tuple(weight.shape), weight.dtype, 0
        self._bias = None if bias is None else bias.detach()
        self._packed = laid_out(weight)

    @property
    def weight(self) -> Tensor:
        """[out, in], a copy."""
        return plain(self._packed)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return in_tiles(partial(times, opaque=self._packed, bias=self._bias), x, self.most)
