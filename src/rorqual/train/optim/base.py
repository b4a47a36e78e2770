"""The base class of optimizers: built from a config, stepped with gradients, saved as named tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Executor

from torch import Tensor, nn

from rorqual.core.config import Kind, NonNegative
from rorqual.core.errors import CheckpointError
from rorqual.train.schedule import Schedule


class Optimizer(ABC):
    """An optimizer of named parameters, with its state."""

    @abstractmethod
    def step(self, grads: dict[str, Tensor], factor: float, pool: Executor | None = None) -> None:
        """Make one update. `factor`, from the schedule, scales every learning rate. `pool` may run parts in parallel.

        The order of sums must not depend on `pool`.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return the state that a resumed run needs, as named tensors."""

    @abstractmethod
    def load(self, state: dict[str, Tensor]) -> None:
        """Load the tensors of `state`. Raises CheckpointError, before changing anything, if names or shapes differ."""


def check_state(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise a CheckpointError that lists the names and shapes in which `state` differs from `shapes`."""
    problems = [f"missing {name}" for name in shapes if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in shapes]
    problems += [
        f"{name} is {tuple(state[name].shape)}, not {shape}"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise CheckpointError(f"the optimizer state does not match: {shown}")


class OptimConfig(Kind):
    """Base class of optimizer configs. `clip` is the largest global gradient norm; 0 disables clipping."""

    schedule: Schedule = Schedule()
    clip: NonNegative = 1.0

    def build(self, params: dict[str, nn.Parameter]) -> Optimizer:
        """Build the optimizer of these parameters."""
        raise NotImplementedError
