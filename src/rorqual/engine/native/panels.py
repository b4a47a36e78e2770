"""Linear maps whose weights are stored for the kernels."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from rorqual.engine.native.library import (
    INTEGERS,
    TYPES,
    LinearTable,
    from_panels,
    from_quantized_panels,
    kernel,
    pad_to_panels,
    to_panels,
    to_quantized_panels,
)  # fmt: skip
from rorqual.ops.layer import LinearMap


class PanelLinear(LinearMap):
    """A linear map y = x W^T + b whose weight [out, in] is stored only in panels, with `bits` in 8 or 4 bits. It has no gradients.

    Inputs and sums are fp32, whatever the type of the weight. The output has the type of the input.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, bits: int | None = None) -> None:
        super().__init__()
        self.out, self.width = weight.shape
        self._panels = to_panels(weight) if bits is None else to_quantized_panels(weight, bits)
        self._type = TYPES[weight.dtype] if bits is None else INTEGERS[bits]
        self._bias = None if bias is None else bias.detach().float().contiguous()

    @property
    def weight(self) -> Tensor:
        """A copy of the weight [out, in], as the kernels read it."""
        if self._panels.dtype == torch.uint8:
            return from_quantized_panels(self._panels, self.out, self.width)
        return from_panels(self._panels, self.out)

    def table(self) -> LinearTable:
        """Return the struct of the map. It points into this module."""
        bias = None if self._bias is None else self._bias.data_ptr()
        return LinearTable(self._panels.data_ptr(), bias, self.width, self.out, self._type)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]. Raises MemoryError if no memory is left."""
        rows = x.float().reshape(-1, x.shape[-1]).contiguous()
        y = torch.empty(len(rows), pad_to_panels(self.out), dtype=torch.float32)
        if kernel("apply_linear")(byref(self.table()), rows.data_ptr(), len(rows), y.data_ptr(), y.shape[1]):
            raise MemoryError
        return y[:, : self.out].to(x.dtype).view(*x.shape[:-1], self.out)
