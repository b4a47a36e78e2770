"""Linear maps whose weights are stored for the kernels."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from rorqual.engine.native.library import TYPES, LinearTable, from_panels, kernel, pad_to_panels, to_panels
from rorqual.ops.layer import LinearMap


class PanelLinear(LinearMap):
    """A linear map y = x W^T + b whose weight [out, in] is stored only in panels. It has no gradients.

    Inputs and sums are fp32, whatever the type of the weight. The output has the type of the input.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out = len(weight)
        self._panels = to_panels(weight)
        self._bias = None if bias is None else bias.detach().float().contiguous()

    @property
    def weight(self) -> Tensor:
        """A copy of the weight [out, in]."""
        return from_panels(self._panels, self.out)

    def table(self) -> LinearTable:
        """Return the struct of the map. It points into this module."""
        bias = None if self._bias is None else self._bias.data_ptr()
        return LinearTable(self._panels.data_ptr(), bias, self._panels.shape[1], self.out, TYPES[self._panels.dtype])

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        rows = x.float().reshape(-1, x.shape[-1]).contiguous()
        y = torch.empty(len(rows), pad_to_panels(self.out), dtype=torch.float32)
        kernel("apply_linear")(byref(self.table()), rows.data_ptr(), len(rows), y.data_ptr(), y.shape[1])
        return y[:, : self.out].to(x.dtype).view(*x.shape[:-1], self.out)
