"""Mixture of experts (DeepSeekMoE, Dai et al. 2024; V3 eq. 12-16): routed experts, shared experts and a router of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import SerializeAsAny, model_validator
from torch import Tensor

from rorqual.core.config import Count, Natural, one_of
from rorqual.model.cost import Cost, linear_cost
from rorqual.model.ffn.dense import Dense
from rorqual.model.ffn.feed_forward import FFN, FFNConfig
from rorqual.model.ffn.older_versions import nest_router_fields
from rorqual.model.ffn.router import RouterConfig
from rorqual.ops.backends import Backend, Experts
from rorqual.ops.moe import Routing


class MoEConfig(FFNConfig):
    """A mixture of experts. The router's config sets the number of routed experts. Every token uses all shared experts."""

    kind: Literal["moe"] = "moe"
    router: Annotated[SerializeAsAny[RouterConfig], one_of(RouterConfig)]
    moe_intermediate_size: Count
    n_shared_experts: Natural = 0

    @model_validator(mode="before")
    @classmethod
    def _from_older_version(cls, data: Any) -> Any:
        return nest_router_fields(data)

    def build(self, hidden_size: int) -> FFN:
        return MoE(self, hidden_size)

    def cost(self, hidden_size: int) -> Cost:
        expert = linear_cost(hidden_size, self.moe_intermediate_size) * 3
        chosen = self.active_experts()
        experts = Cost(
            expert.params * self.n_experts(), round(expert.active * chosen), round(expert.flops * chosen)
        )  # a token may be routed to identity experts, which have no parameters
        shared = linear_cost(hidden_size, self.moe_intermediate_size * self.n_shared_experts) * 3
        return experts + shared + self.router.cost(hidden_size)

    def experts_per_token(self) -> int:
        return self.router.experts_per_token()

    def n_experts(self) -> int:
        return self.router.n_experts()

    def n_router_choices(self) -> int:
        return self.router.n_router_choices()

    def active_experts(self) -> float:
        return self.router.active_experts()

    def routed_params(self, hidden_size: int) -> int:
        return 3 * hidden_size * self.moe_intermediate_size * self.n_experts()

    def saved_activations(self, hidden_size: int, *, without_recomputation: bool) -> int:
        """See `FFNConfig.saved_activations`. The number of activations includes one copy of the input per chosen expert."""
        inner, normed = (3, hidden_size) if without_recomputation else (2, 0)
        chosen = round(self.active_experts() * (hidden_size + inner * self.moe_intermediate_size + normed))
        return chosen + inner * self.n_shared_experts * self.moe_intermediate_size + normed

    def check(self) -> None:
        self.router.check()


class MoE(FFN):
    """Mixture-of-experts module: the gated sum of the chosen experts plus the shared experts. An identity expert outputs its input."""

    def __init__(self, config: MoEConfig, hidden_size: int) -> None:
        super().__init__()
        self.experts_per_token = config.experts_per_token()
        self.n_experts = config.n_experts()
        self.router = config.router.build(hidden_size)
        self.experts = Experts(self.n_experts, hidden_size, config.moe_intermediate_size)
        shared = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = Dense(hidden_size, shared) if shared else None

    def target_load(self) -> Tensor:
        return self.router.config.target_load()

    def balance(self, load: Tensor, gamma: float) -> None:
        self.router.balance(load, gamma)

    def exclude_experts(self, choices: Sequence[int]) -> None:
        self.router.exclude_experts(choices)

    def forward(self, x: Tensor, ops: Backend, replay: Tensor | None) -> tuple[Tensor, Routing | None]:
        routing: Routing = self.router(x, ops, replay)
        y: Tensor = self.experts(x, routing.routed_only(self.n_experts), ops)
        if routing.skips:
            y = y + routing.identity_gates(self.n_experts).to(x.dtype) * x
        if self.shared_experts is not None:
            y = y + self.shared_experts(x, ops, None)[0]
        return y, routing
