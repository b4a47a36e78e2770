"""SwiGLU (Shazeer 2020, eq. 6)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from rorqual.core.config import Count
from rorqual.model.cost import Cost, linear
from rorqual.model.ffn.base import FFN, FFNConfig
from rorqual.ops.invariant import LANES
from rorqual.ops.moe import Routing
from rorqual.ops.registry import Ops


class DenseConfig(FFNConfig):
    """down(silu(gate(x)) * up(x)) without biases."""

    kind: Literal["dense"] = "dense"
    intermediate_size: Count

    def build(self, hidden_size: int) -> FFN:
        return Dense(hidden_size, self.intermediate_size)

    def saved_values(self, hidden_size: int, *, everything: bool) -> int:
        return (3 if everything else 2) * self.intermediate_size + (hidden_size if everything else 0)

    def split_by_tp(self) -> dict[str, int]:
        return {"intermediate_size": self.intermediate_size}

    def cost(self, hidden_size: int) -> Cost:
        return linear(hidden_size, self.intermediate_size) * 3


class Dense(FFN):
    """gate, up [intermediate, hidden], down [hidden, intermediate]."""

    gate_up_proj: nn.Module | None

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.register_module("gate_up_proj", None)
        if (
            intermediate_size % LANES == 0
        ):  # else the halves of one product would have to be filled up (`ops.invariant`)
            self.joined = {"gate_up_proj": ("gate_proj", "up_proj")}
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor, ops: Ops, replay: Tensor | None) -> tuple[Tensor, Routing | None]:
        if self.gate_up_proj is None:
            gate, up = self.gate_proj(x), self.up_proj(x)
        else:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(ops.silu(gate) * up), None
