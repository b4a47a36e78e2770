"""What every router kind offers: a config that builds and accounts for it, and a module that chooses experts for tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from rorqual.core.config import Kind
from rorqual.core.errors import ConfigError
from rorqual.model.cost import Cost
from rorqual.ops.backends import Backend
from rorqual.ops.layer import Layer
from rorqual.ops.moe import Routing, aimed_load


class RouterConfig(Kind):
    """Base of the router kinds.

    A router numbers its choices: 0 to `n_experts()` - 1 are experts with weights, and the `n_identity()` numbers after them are identity
    experts, which return their input (LongCat-Flash's zero-computation experts, 2509.01322). `SKIP` stands for no expert at all.
    """

    def build(self, hidden_size: int) -> Router:
        """The module."""
        raise NotImplementedError

    def cost(self, hidden_size: int) -> Cost:
        """Parameters and FLOPs a token of the router itself."""
        raise NotImplementedError

    def experts_per_token(self) -> int:
        """Choices for each token."""
        raise NotImplementedError

    def n_experts(self) -> int:
        """Experts with weights."""
        raise NotImplementedError

    def n_identity(self) -> int:
        """Identity experts."""
        return 0

    def n_choices(self) -> int:
        """Numbers that a choice may have, `SKIP` apart."""
        return self.n_experts() + self.n_identity()

    def target_load(self) -> Tensor:
        """Shares of all choices [choices] (float64) that balance aims at: even, unless a kind says otherwise."""
        return torch.full((self.n_choices(),), 1 / self.n_choices(), dtype=torch.float64)

    def active_experts(self) -> float:
        """Experts with weights that serve a token, in the mean, where the load is `target_load`."""
        return self.experts_per_token() * float(self.target_load()[: self.n_experts()].sum())

    def check(self) -> None:
        """Raise ValueError where the numbers contradict each other."""


class Router(Layer, ABC):
    """x [tokens, hidden] -> `Routing`; replay [tokens, k] fixes the choices (`CHOOSE`: none is fixed there).

    Gates are computed in every forward, replayed or not, so that the router has its gradient. A router whose choices may be other than
    experts with weights says so (`Routing.skips`). Buffers keep their type, whatever type the model is given.
    """

    def __init__(self, config: RouterConfig) -> None:
        super().__init__()
        self.config = config

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A bias rounded to bf16 chooses other experts (transformers#42580): types pass by, devices do not.
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def load_error(self, load: Tensor) -> Tensor:
        """load [choices], the tokens of an update by choice -> by how many each has fewer than `target_load` gives it [choices]."""
        return aimed_load(load, self.config.target_load()) - load.float()

    def balance(self, load: Tensor, gamma: float) -> None:
        """Move what brings the load to `target_load` by one step of `gamma`, given the tokens of an update by choice [choices]."""

    def exclude(self, choices: Sequence[int]) -> None:
        """Never choose these again. Raises ConfigError where the kind cannot."""
        raise ConfigError(
            f"a router of kind '{self.config.kind}' cannot leave experts out",
            where="experts",
            remedy="Take a model whose router is of kind 'grouped_topk'.",
        )

    @abstractmethod
    def forward(self, x: Tensor, ops: Backend, replay: Tensor | None) -> Routing: ...
