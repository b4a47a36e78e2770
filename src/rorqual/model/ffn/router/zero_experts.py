"""The router of LongCat-Flash (2509.01322, section 2.1): top-k experts, among them identity experts, which compute nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rorqual.core.config import MOST, Count, Positive
from rorqual.model.cost import Cost, linear_cost, vector_cost
from rorqual.model.ffn.router.router import Router, RouterConfig
from rorqual.ops.backends import Backend
from rorqual.ops.moe import Routing, expected_load, route, router_logits


class ZeroExpertsConfig(RouterConfig):
    """A router with `zero_expert_num` identity experts beside `n_routed_experts` experts with weights, with LongCat-Flash's
    field names.

    Each token chooses `num_experts_per_tok` of all experts, so the number of experts with weights differs between tokens. Load
    balancing keeps the mean number of experts with weights per token at `expected_experts` (K_e in the LongCat-Flash report).
    Gates are softmax scores times `routed_scaling_factor`, without normalisation.
    """

    kind: Literal["zero"] = "zero"
    n_routed_experts: int = Field(ge=2, le=MOST)
    zero_expert_num: Count
    num_experts_per_tok: Count
    expected_experts: Positive
    routed_scaling_factor: Positive = 1.0

    def build(self, hidden_size: int) -> Router:
        return ZeroExperts(self, hidden_size)

    def cost(self, hidden_size: int) -> Cost:
        return linear_cost(hidden_size, self.n_router_choices()) + vector_cost(self.n_router_choices())

    def experts_per_token(self) -> int:
        return self.num_experts_per_tok

    def n_experts(self) -> int:
        return self.n_routed_experts

    def n_identity_experts(self) -> int:
        return self.zero_expert_num

    def target_load(self) -> Tensor:
        """See `RouterConfig.target_load`. Experts with weights share K_e / K of the load (K is `num_experts_per_tok`), and
        identity experts share the other 1 - K_e / K."""
        n, zero, share = self.n_routed_experts, self.zero_expert_num, self.expected_experts / self.num_experts_per_tok
        return torch.tensor([share / n] * n + [(1 - share) / zero] * zero, dtype=torch.float64)

    def check(self) -> None:
        if self.num_experts_per_tok > self.n_router_choices():
            raise ValueError("num_experts_per_tok must be at most n_routed_experts + zero_expert_num")
        if not self.expected_experts < self.num_experts_per_tok:
            raise ValueError(
                "expected_experts must be less than num_experts_per_tok, or no token chooses an identity expert"
            )
        if self.expected_experts > self.n_routed_experts:
            raise ValueError("expected_experts must be at most n_routed_experts")
        if self.num_experts_per_tok - self.expected_experts > self.zero_expert_num:
            raise ValueError("num_experts_per_tok - expected_experts must be at most zero_expert_num")


class ZeroExperts(Router):
    """A module of the router `ZeroExpertsConfig`. The router computes in fp32, whatever the dtype of its weight `gate` [choices, hidden].

    Load balancing updates the buffer `e_score_correction_bias` [choices], but only for experts with weights.
    """

    derived = {"wide_gate": "gate"}
    e_score_correction_bias: Tensor

    def __init__(self, config: ZeroExpertsConfig, hidden_size: int) -> None:
        super().__init__(config)
        self.config: ZeroExpertsConfig = config
        self.gate = nn.Parameter(torch.empty(config.n_router_choices(), hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_router_choices()))

    def wide_gate(self) -> tuple[Tensor]:
        """Return the weight [choices, hidden] in fp32, because logits are computed in fp32."""
        return (self.gate.float(),)

    @torch.no_grad()
    def balance(self, load: Tensor, gamma: float) -> None:
        """Change the bias of each expert with weights by `gamma` times the expert's load error divided by the expert's target
        load.

        The update is LongCat-Flash's proportional controller, mu (K_e / (K N) - T_i / (K T)) for N experts with weights, with
        mu = `gamma` K N / K_e. T_i of the T tokens chose expert i.
        """
        target = expected_load(load, self.config.target_load())
        n = self.config.n_routed_experts
        if load.sum() > 0:
            self.e_score_correction_bias[:n].add_(gamma * (1 - load[:n] / target[:n]))

    def forward(self, x: Tensor, ops: Backend, replay: Tensor | None) -> Routing:
        c = self.config
        routing = route(
            router_logits(x, *self.derived_tensors("wide_gate")),
            self.e_score_correction_bias,
            k=c.num_experts_per_tok,
            score="softmax",
            norm=False,
            scale=c.routed_scaling_factor,
            replay=replay,
        )
        return replace(routing, skips=True)
