"""Prepack weights in oneDNN's blocked layout, for inference-only copies of a model.

Without prepacking, every matrix product repacks its weight. For few input rows, repacking the weight takes as long as the
matrix product itself.

In bf16, engine steps with and without prepacking are bit-identical, but a forward pass of `Torch` without a KV cache differs
from an engine step by rounding errors. In fp32, prepacking changes the order of the additions in sums over more than a few
hundred columns. In fp32, the results of engines with and without prepacking therefore differ in the last bits, but each engine
reproduces its own results.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from rorqual.ops.backends.reference import Backend, Matrices
from rorqual.ops.layer import LinearMap
from rorqual.ops.prepacked import prepack, prepacked_linear, to_plain_layout
from rorqual.ops.row_limits import apply_in_tiles

SMALLEST = 1 << 16
"""Smallest number of elements of a weight for which prepacking makes matrix products faster."""


class PrepackingBackend(Backend):
    """Base class of backends that prepack weights if torch and the machine support oneDNN's blocked layout."""

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
        return [prepack(weight) for weight in gate_up], [prepack(weight) for weight in down]


class PackedLinear(LinearMap):
    """A linear map y = x W^T + b whose weight [out, in] is stored only in oneDNN's layout.

    A `PackedLinear` does not support gradients.

    `most` is the maximum number of rows per matrix product (`ops.row_limits.RowLimits.most`).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.shape, self.dtype, self.most = tuple(weight.shape), weight.dtype, 0
        self._bias = None if bias is None else bias.detach()
        self._packed = prepack(weight)

    @property
    def weight(self) -> Tensor:
        """A copy of the linear map's weight [out, in] in the plain layout."""
        return to_plain_layout(self._packed)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        return apply_in_tiles(partial(prepacked_linear, opaque=self._packed, bias=self._bias), x, self.most)
