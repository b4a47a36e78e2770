"""A backend as a user writes it, outside the package: it keeps the weights of a copy for inference transposed, and knows float32 alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rorqual.ops import moe
from rorqual.ops.backends import Backend
from rorqual.ops.backends.base import Matrices
from rorqual.ops.layer import LinearMap
from rorqual.ops.moe import Routing


class TransposedLinear(LinearMap):
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.columns, self.bias = weight.detach().t().contiguous(), bias

    @property
    def weight(self) -> Tensor:
        return self.columns.t().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.columns
        return y if self.bias is None else y + self.bias


class Columns(list[Tensor]):
    """Matrices [in, out], one for each expert."""


class Transposed(Backend):
    name = "transposed"
    used: list[str] = []
    """What was called, for the tests."""

    def supports(
        self, device: torch.device, dtype: torch.dtype, model: nn.Module | None = None, *, training: bool = False
    ) -> str | None:
        return None if dtype == torch.float32 else f"it computes in float32, not in {dtype}"

    def prepares(self, model: nn.Module) -> bool:
        return True

    def prepare_linear(self, weight: Tensor, bias: Tensor | None) -> nn.Module | None:
        return TransposedLinear(weight, bias)

    def prepare_experts(self, gate_up: Tensor, down: Tensor) -> tuple[Matrices, Matrices] | None:
        return tuple(Columns(w.detach().t().contiguous() for w in stack) for stack in (gate_up, down))  # type: ignore[return-value]

    def experts(self, x: Tensor, routing: Routing, gate_up: Matrices, down: Matrices) -> Tensor:
        self.used.append("columns" if isinstance(gate_up, Columns) else "stacked")
        if isinstance(gate_up, Columns):
            gate_up, down = ([w.t() for w in columns] for columns in (gate_up, down))
        return moe.experts(x, routing, gate_up, down)
