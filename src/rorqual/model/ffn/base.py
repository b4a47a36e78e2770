"""What every feed-forward kind offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from rorqual.core.config import Kind
from rorqual.model.cost import Cost
from rorqual.ops.moe import Routing
from rorqual.ops.registry import Ops


class FFN(nn.Module, ABC):
    """x [tokens, hidden] -> ([tokens, hidden], where the tokens went or None). `joined`, `lay_out`: as of `Attention`."""

    joined: Mapping[str, tuple[str, ...]] = {}

    def lay_out(self) -> None:
        """Make of a copy that nobody trains what reads fastest."""

    @abstractmethod
    def forward(self, x: Tensor, ops: Ops, replay: Tensor | None) -> tuple[Tensor, Routing | None]: ...


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

    def check(self) -> None:
        """Raise ValueError where the dimensions contradict each other."""
