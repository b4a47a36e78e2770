"""Optimizers: built from a config, stepped with gradients, saved as named tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Executor

from torch import Tensor, nn

from rorqual.core.config import Kind
from rorqual.train.schedule import Schedule


class Optimizer(ABC):
    """Owns the state of named parameters."""

    @abstractmethod
    def step(self, grads: dict[str, Tensor], factor: float, pool: Executor | None = None) -> None:
        """One update; `factor` scales every learning rate (the schedule); `pool` may share the work, in a fixed order of sums."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, by name."""

    @abstractmethod
    def load(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""


class OptimConfig(Kind):
    """Base of the optimizers. `clip`: largest global gradient norm, 0 for none."""

    schedule: Schedule = Schedule()
    clip: float = 1.0

    def build(self, params: dict[str, nn.Parameter]) -> Optimizer:
        """The optimizer of these parameters."""
        raise NotImplementedError
