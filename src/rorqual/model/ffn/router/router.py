"""Base classes of the router kinds. `RouterConfig` builds the `Router` and reports the cost of the `Router`. The `Router`
chooses experts for tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from rorqual.core.config import KindConfig
from rorqual.core.errors import ConfigError
from rorqual.model.cost import Cost
from rorqual.ops.backends import Backend
from rorqual.ops.layer import Layer
from rorqual.ops.moe import Routing, expected_load


class RouterConfig(KindConfig):
    """Base class of the router kinds' configs.

    Router choices 0 to `n_experts()` - 1 are experts with weights. The next `n_identity_experts()` router choices are identity
    experts, which return their input. LongCat-Flash (2509.01322) calls identity experts zero-computation experts. The router
    choice `SKIP` stands for no expert.
    """

    def build(self, hidden_size: int) -> Router:
        """Build the router module."""
        raise NotImplementedError

    def cost(self, hidden_size: int) -> Cost:
        """Return the router's parameters and FLOPs per token."""
        raise NotImplementedError

    def experts_per_token(self) -> int:
        """Return the number of router choices per token."""
        raise NotImplementedError

    def n_experts(self) -> int:
        """Return the number of experts with weights."""
        raise NotImplementedError

    def n_identity_experts(self) -> int:
        """Return the number of identity experts."""
        return 0

    def n_router_choices(self) -> int:
        """Return how many choices the router has: experts with weights plus identity experts, without `SKIP`."""
        return self.n_experts() + self.n_identity_experts()

    def target_load(self) -> Tensor:
        """Return the target load share of each router choice [choices] in float64. By default, all router choices have the same
        target load share."""
        return torch.full((self.n_router_choices(),), 1 / self.n_router_choices(), dtype=torch.float64)

    def active_experts(self) -> float:
        """Return the mean number of experts with weights that a token uses, if the load equals `target_load`."""
        return self.experts_per_token() * float(self.target_load()[: self.n_experts()].sum())

    def check(self) -> None:
        """Raise ValueError if fields of the config contradict each other."""


class Router(Layer, ABC):
    """A router module: x [tokens, hidden] -> `Routing`. `replay` [tokens, k] fixes the chosen experts. Negative entries
    of `replay` let the router choose.

    Gates are recomputed in every forward pass, even for replayed expert choices, so the router receives a gradient. A router
    that can choose `SKIP` or identity experts sets `Routing.skips`. The router's buffers keep their dtype when the model is
    cast.
    """

    def __init__(self, config: RouterConfig) -> None:
        super().__init__()
        self.config = config

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Buffers move between devices but keep their dtype, because a bias rounded to bf16 would change the chosen experts
        # (transformers#42580).
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def load_error(self, load: Tensor) -> Tensor:
        """Return the load error of each router choice [choices]: the choice's target token count minus the choice's actual
        token count in `load` [choices]."""
        return expected_load(load, self.config.target_load()) - load.float()

    def balance(self, load: Tensor, gamma: float) -> None:
        """Adjust the router by one step of size `gamma` toward `target_load`.

        `load` [choices] is the number of tokens per router choice in the current optimizer step.
        """

    def exclude_experts(self, choices: Sequence[int]) -> None:
        """Stop routing tokens to the experts `choices`. Raises ConfigError if the router kind cannot exclude experts."""
        raise ConfigError(
            f"router kind '{self.config.kind}' cannot exclude experts",
            where="experts",
            remedy="Use a model whose router is of kind 'grouped_topk'.",
        )

    @abstractmethod
    def forward(self, x: Tensor, ops: Backend, replay: Tensor | None) -> Routing: ...
