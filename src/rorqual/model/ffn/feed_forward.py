"""Base classes of the feed-forward kinds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from rorqual.core.config import KindConfig
from rorqual.core.errors import ConfigError
from rorqual.model.cost import Cost
from rorqual.ops.backends import Backend
from rorqual.ops.layer import Layer
from rorqual.ops.moe import Routing


class FFN(Layer, ABC):
    """A feed-forward network: x [tokens, hidden] -> ([tokens, hidden], routing or None).

    `experts_per_token` is the number of routed experts per token, as in the config. If `experts_per_token` is above 0,
    generation records the expert choices. Training replays the recorded expert choices, and counts the expert choices for load
    balancing.
    """

    experts_per_token: int = 0

    def target_load(self) -> Tensor | None:
        """Return the target load share of each router choice [choices] in float64, or None for an even load."""
        return None

    def balance(self, load: Tensor, gamma: float) -> None:
        """Adjust the router by one step of size `gamma` toward `target_load`.

        `load` [choices] is the number of tokens per router choice in the current optimizer step.
        """

    def exclude_experts(self, choices: Sequence[int]) -> None:
        """Stop routing tokens to the experts `choices`. Raises ConfigError if the feed-forward kind cannot exclude experts."""
        raise ConfigError(
            "this kind of feed-forward network cannot exclude experts",
            where="experts",
            remedy="Use a model whose feed-forward networks are of kind 'moe'.",
        )

    @abstractmethod
    def forward(self, x: Tensor, ops: Backend, replay: Tensor | None) -> tuple[Tensor, Routing | None]: ...


class FFNConfig(KindConfig):
    """Base class of the feed-forward kinds' configs."""

    def build(self, hidden_size: int) -> FFN:
        """Build the feed-forward network."""
        raise NotImplementedError

    def cost(self, hidden_size: int) -> Cost:
        """Return the parameter count and the forward FLOPs per token of the feed-forward network."""
        raise NotImplementedError

    def experts_per_token(self) -> int:
        """Return the number of routed experts per token, or 0 for a network without a router."""
        return 0

    def n_experts(self) -> int:
        """Return the number of routed experts that have weights, or 0 for a network without a router."""
        return 0

    def n_router_choices(self) -> int:
        """Return how many choices the router has: experts with weights plus identity experts, without `SKIP`."""
        return self.n_experts()

    def active_experts(self) -> float:
        """Return the mean number of experts with weights that a token uses."""
        return self.experts_per_token()

    def routed_params(self, hidden_size: int) -> int:
        """Return the parameter count of all routed experts together."""
        return 0

    def saved_activations(self, hidden_size: int, *, without_recomputation: bool) -> int:
        """Return the number of activations per token that training saves for the backward pass, excluding the residual stream.

        With selective recomputation, training saves the outputs of the gate and up projections. `without_recomputation` counts
        the activations saved without recomputation, which include the normed input and the product silu(gate) * up. Raises
        ConfigError if the feed-forward kind does not implement `saved_activations`.
        """
        raise ConfigError(
            f"feed-forward kind '{self.kind}' does not report the values it saves for the backward pass",
            where="plan",
            remedy="Implement `saved_activations` in its config.",
        )

    def split_by_tp(self) -> dict[str, int]:
        """Return the config fields whose values tensor parallelism divides among GPUs, by name."""
        return {}

    def check(self) -> None:
        """Raise ValueError if fields of the config contradict each other."""
