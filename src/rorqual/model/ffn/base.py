"""What every feed-forward kind offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from rorqual.core.config import Kind
from rorqual.core.errors import ConfigError
from rorqual.model.cost import Cost
from rorqual.ops.backends import Backend
from rorqual.ops.layer import Layer
from rorqual.ops.moe import Routing


class FFN(Layer, ABC):
    """x [tokens, hidden] -> ([tokens, hidden], where the tokens went or None).

    `experts_per_token`: routed experts that serve a token, as of the config. Where it is not 0, choices are recorded, replayed and counted.
    """

    experts_per_token: int = 0

    def target_load(self) -> Tensor | None:
        """Shares of an update's choices [choices] (float64) that balance aims at; None: even."""
        return None

    def balance(self, load: Tensor, gamma: float) -> None:
        """Move what brings the load to `target_load` by one step of `gamma`, given the tokens of an update by choice [choices]."""

    def exclude(self, choices: Sequence[int]) -> None:
        """Never choose these experts again. Raises ConfigError where the kind cannot."""
        raise ConfigError(
            "a network of this kind cannot leave experts out",
            where="experts",
            remedy="Take a model whose feed-forward networks are of kind 'moe'.",
        )

    @abstractmethod
    def forward(self, x: Tensor, ops: Backend, replay: Tensor | None) -> tuple[Tensor, Routing | None]: ...


class FFNConfig(Kind):
    """Base of the feed-forward kinds."""

    def build(self, hidden_size: int) -> FFN:
        """The module."""
        raise NotImplementedError

    def cost(self, hidden_size: int) -> Cost:
        """Parameters and FLOPs a token."""
        raise NotImplementedError

    def experts_per_token(self) -> int:
        """Routed experts that serve a token; 0 where nothing is routed."""
        return 0

    def n_experts(self) -> int:
        """Routed experts with weights; 0 where nothing is routed."""
        return 0

    def n_choices(self) -> int:
        """Numbers that a recorded choice may have, `SKIP` apart: experts with weights, and what else a router may choose."""
        return self.n_experts()

    def active_experts(self) -> float:
        """Experts with weights that serve a token, in the mean."""
        return self.experts_per_token()

    def routed_params(self, hidden_size: int) -> int:
        """Parameters of all routed experts."""
        return 0

    def saved_values(self, hidden_size: int, *, everything: bool) -> int:
        """Values a token that training saves for the backward, beside the residual stream: gate and up; with `everything` also their product
        and the normed input."""
        raise ConfigError(f"no account of what network '{self.kind}' saves", where="plan", remedy="Add it there.")

    def split_by_tp(self) -> dict[str, int]:
        """What tensor parallelism divides, by its name in the config."""
        return {}

    def check(self) -> None:
        """Raise ValueError where the dimensions contradict each other."""
