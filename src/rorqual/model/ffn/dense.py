"""The dense feed-forward network: SwiGLU (Shazeer 2020, eq. 6)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from rorqual.core.config import Count
from rorqual.model.cost import Cost, linear_cost
from rorqual.model.ffn.feed_forward import FFN, FFNConfig
from rorqual.ops.backends import Backend
from rorqual.ops.moe import Routing


class DenseConfig(FFNConfig):
    """A SwiGLU network without biases: down(silu(gate(x)) * up(x))."""

    kind: Literal["dense"] = "dense"
    intermediate_size: Count

    def build(self, hidden_size: int) -> FFN:
        return Dense(hidden_size, self.intermediate_size)

    def saved_activations(self, hidden_size: int, *, without_recomputation: bool) -> int:
        return (3 if without_recomputation else 2) * self.intermediate_size + (
            hidden_size if without_recomputation else 0
        )

    def split_by_tp(self) -> dict[str, int]:
        return {"intermediate_size": self.intermediate_size}

    def cost(self, hidden_size: int) -> Cost:
        return linear_cost(hidden_size, self.intermediate_size) * 3


class Dense(FFN):
    """A SwiGLU module with weights gate and up [intermediate, hidden] and down [hidden, intermediate]."""

    shared_input = (("gate_proj",), ("up_proj",))

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor, ops: Backend, replay: Tensor | None) -> tuple[Tensor, Routing | None]:
        gate, up = self.apply_shared_input(x)
        return self.down_proj(ops.act_mul(gate, up)), None
