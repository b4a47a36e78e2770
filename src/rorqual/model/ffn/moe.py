"""Mixture of experts with shared ones (DeepSeekMoE, Dai et al. 2024; V3 eq. 12-16), balanced by a router bias."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from rorqual.core.config import MOST, Count, Natural, Positive
from rorqual.model.cost import Cost, linear, vector
from rorqual.model.ffn.base import FFN, FFNConfig
from rorqual.model.ffn.dense import Dense
from rorqual.ops.backends import Backend, Experts
from rorqual.ops.moe import Routing, route, router_logits


class MoEConfig(FFNConfig):
    """DeepSeek's names. `group_score` 'top2' is V3's sum of a group's two best, 'max' is V2's."""

    kind: Literal["moe"] = "moe"
    n_routed_experts: int = Field(ge=2, le=MOST)
    num_experts_per_tok: Count
    moe_intermediate_size: Count
    n_shared_experts: Natural = 0
    n_group: Count = 1
    topk_group: Count = 1
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: Positive = 1.0
    group_score: Literal["top2", "max"] = "top2"
    score_bias: bool = True

    def build(self, hidden_size: int) -> FFN:
        return MoE(self, hidden_size)

    def cost(self, hidden_size: int) -> Cost:
        expert = linear(hidden_size, self.moe_intermediate_size) * 3
        active = expert * self.num_experts_per_tok
        shared = linear(hidden_size, self.moe_intermediate_size * self.n_shared_experts) * 3
        router = linear(hidden_size, self.n_routed_experts)
        bias = vector(self.n_routed_experts) if self.score_bias else Cost()
        return Cost(expert.params * self.n_routed_experts, active.active, active.flops) + shared + router + bias

    def experts_per_token(self) -> int:
        return self.num_experts_per_tok

    def n_experts(self) -> int:
        return self.n_routed_experts

    def routed_params(self, hidden_size: int) -> int:
        return 3 * hidden_size * self.moe_intermediate_size * self.n_routed_experts

    def saved_values(self, hidden_size: int, *, everything: bool) -> int:
        """For each expert that is chosen, its copy of the input, too."""
        inner, normed = (3, hidden_size) if everything else (2, 0)
        chosen = self.num_experts_per_tok * (hidden_size + inner * self.moe_intermediate_size + normed)
        return chosen + inner * self.n_shared_experts * self.moe_intermediate_size + normed

    def check(self) -> None:
        per_group, rest = divmod(self.n_routed_experts, self.n_group)
        if rest:
            raise ValueError("n_routed_experts must be a multiple of n_group")
        if self.topk_group > self.n_group or self.num_experts_per_tok > per_group * self.topk_group:
            raise ValueError("num_experts_per_tok must fit into topk_group groups of n_group")
        if self.n_group > 1 and self.group_score == "top2" and per_group < 2:
            raise ValueError("group_score 'top2' needs two experts in a group")


class MoE(FFN):
    """`e_score_correction_bias` [experts] is a buffer that the trainer moves. It stays fp32 in every type, and so does the
    router's arithmetic, whatever the type of its weight `gate`."""

    derived = {"wide_gate": "gate"}
    e_score_correction_bias: Tensor

    def __init__(self, config: MoEConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = c = config
        self.experts_per_token = c.num_experts_per_tok
        self.gate = nn.Parameter(torch.empty(c.n_routed_experts, hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(c.n_routed_experts), persistent=c.score_bias)
        self.experts = Experts(c.n_routed_experts, hidden_size, c.moe_intermediate_size)
        shared = c.n_shared_experts * c.moe_intermediate_size
        self.shared_experts = Dense(hidden_size, shared) if shared else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A bias rounded to bf16 chooses other experts (transformers#42580): types pass by, devices do not.
        bias = self.e_score_correction_bias
        super()._apply(fn, recurse)
        moved = self.e_score_correction_bias
        if moved.dtype != bias.dtype:
            self.e_score_correction_bias = bias.to(moved.device)
        return self

    def wide_gate(self) -> tuple[Tensor]:
        """The router's weight [experts, hidden] in the type that it is used in."""
        return (self.gate.float(),)

    @torch.no_grad()
    def balance(self, load: Tensor, gamma: float) -> None:
        """Move every expert's bias by the sign of its load error (V3, section 2.1.2)."""
        error = load.float().mean() - load.float()
        self.e_score_correction_bias.add_(gamma * error.sign().to(self.e_score_correction_bias))

    def forward(self, x: Tensor, ops: Backend, replay: Tensor | None) -> tuple[Tensor, Routing | None]:
        c = self.config
        routing = route(
            router_logits(x, *self.tensors("wide_gate")),
            self.e_score_correction_bias,
            k=c.num_experts_per_tok,
            n_group=c.n_group,
            topk_group=c.topk_group,
            score=c.scoring_func,
            norm=c.norm_topk_prob,
            scale=c.routed_scaling_factor,
            group_by=c.group_score,
            replay=replay,
            sigmoid=ops.sigmoid,
        )
        y: Tensor = self.experts(x, routing.served(), ops)
        if self.shared_experts is not None:
            y = y + self.shared_experts(x, ops, None)[0]
        return y, routing
