"""Base classes of the optimizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Executor

from torch import Tensor, nn

from rorqual.core.config import Kind, NonNegative
from rorqual.core.errors import CheckpointError
from rorqual.train.schedule import Schedule


class Optimizer(ABC):
    """An optimizer of named parameters. Its state is saved and loaded as named tensors."""

    @abstractmethod
    def step(self, grads: dict[str, Tensor], factor: float, pool: Executor | None = None) -> None:
        """Update the parameters. All learning rates are multiplied by `factor`, which comes from the schedule.

        `pool` may be used to update parameters in parallel. The result must be bit-identical with and without `pool`.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return the optimizer state as named tensors. A resumed run loads these tensors."""

    @abstractmethod
    def load(self, state: dict[str, Tensor]) -> None:
        """Load a saved state. If names or shapes differ, raises CheckpointError and leaves the optimizer unchanged."""


def check_state(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check names and shapes of an optimizer state. Raises CheckpointError listing up to six differences from `shapes`."""
    problems = [f"missing {name}" for name in shapes if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in shapes]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, not {shape}"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise CheckpointError(f"the optimizer state does not match: {shown}")


class OptimConfig(Kind):
    """Base class of the optimizers' configs. Gradients are clipped to a global norm of `clip`; 0 disables clipping."""

    schedule: Schedule = Schedule()
    clip: NonNegative = 1.0

    def build(self, params: dict[str, nn.Parameter]) -> Optimizer:
        """Build the optimizer of `params`, which maps names to parameters."""
        raise NotImplementedError
