"""The router of DeepSeek-V2, V3 and Qwen3 (V3 eq. 12-16): top-k experts within the best groups, with a bias for load
balancing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rorqual.core.config import MOST, Count, Positive
from rorqual.core.errors import ConfigError
from rorqual.model.cost import Cost, linear_cost, vector_cost
from rorqual.model.ffn.router.router import Router, RouterConfig
from rorqual.ops.backends import Backend
from rorqual.ops.moe import Routing, route, router_logits


class GroupedTopKConfig(RouterConfig):
    """A grouped top-k router, with DeepSeek's field names.

    The score of a group is the sum of its two highest expert scores (`group_score="top2"`, V3) or only the highest expert score
    (`"max"`, V2).
    """

    kind: Literal["grouped_topk"] = "grouped_topk"
    n_routed_experts: int = Field(ge=2, le=MOST)
    num_experts_per_tok: Count
    n_group: Count = 1
    topk_group: Count = 1
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: Positive = 1.0
    group_score: Literal["top2", "max"] = "top2"
    score_bias: bool = True

    def build(self, hidden_size: int) -> Router:
        return GroupedTopK(self, hidden_size)

    def cost(self, hidden_size: int) -> Cost:
        bias = vector_cost(self.n_routed_experts) if self.score_bias else Cost()
        return linear_cost(hidden_size, self.n_routed_experts) + bias

    def experts_per_token(self) -> int:
        return self.num_experts_per_tok

    def n_experts(self) -> int:
        return self.n_routed_experts

    def check(self) -> None:
        per_group, remainder = divmod(self.n_routed_experts, self.n_group)
        if remainder:
            raise ValueError("n_routed_experts must be a multiple of n_group")
        if self.topk_group > self.n_group or self.num_experts_per_tok > per_group * self.topk_group:
            raise ValueError(
                "topk_group must be at most n_group, and num_experts_per_tok must be at most the number of experts in topk_group groups"
            )
        if self.n_group > 1 and self.group_score == "top2" and per_group < 2:
            raise ValueError("group_score 'top2' needs at least two experts per group")


class GroupedTopK(Router):
    """A grouped top-k router module. The router computes in fp32, whatever the dtype of its weight `gate` [experts, hidden].

    `e_score_correction_bias` [experts] is a buffer that load balancing updates. `e_score_correction_bias` is None if
    `score_bias` is False.
    """

    derived = {"wide_gate": "gate"}
    e_score_correction_bias: Tensor | None

    def __init__(self, config: GroupedTopKConfig, hidden_size: int) -> None:
        super().__init__(config)
        self.config: GroupedTopKConfig = config
        self.gate = nn.Parameter(torch.empty(config.n_routed_experts, hidden_size))
        self.register_buffer(
            "e_score_correction_bias", torch.zeros(config.n_routed_experts) if config.score_bias else None
        )

    def wide_gate(self) -> tuple[Tensor]:
        """Return the weight [experts, hidden] in fp32, because logits are computed in fp32."""
        return (self.gate.float(),)

    @torch.no_grad()
    def balance(self, load: Tensor, gamma: float) -> None:
        """Change the bias of each expert by `gamma` times the sign of its load error (V3, section 2.1.2)."""
        if (bias := self.e_score_correction_bias) is not None:
            bias.add_(gamma * self.load_error(load).sign().to(bias))

    def exclude_experts(self, choices: Sequence[int]) -> None:
        """Set the bias of the experts `choices` to minus infinity, so that tokens are routed to other experts.

        Raises ConfigError if fewer than `num_experts_per_tok` experts remain.
        """
        remaining = self.config.n_routed_experts - len(set(choices))
        if remaining < self.config.num_experts_per_tok:
            raise ConfigError(
                f"only {remaining} experts would remain, but each token needs {self.config.num_experts_per_tok}",
                where="experts",
                remedy="Exclude fewer experts.",
            )
        if self.e_score_correction_bias is None:
            self.e_score_correction_bias = torch.zeros(self.config.n_routed_experts, device=self.gate.device)
        self.e_score_correction_bias[list(choices)] = float("-inf")

    def forward(self, x: Tensor, ops: Backend, replay: Tensor | None) -> Routing:
        c = self.config
        return route(
            router_logits(x, *self.derived_tensors("wide_gate")),
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
