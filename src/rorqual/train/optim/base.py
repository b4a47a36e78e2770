"""Optimizers: built from a config, stepped with gradients, saved as named tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Executor

from torch import Tensor, nn

from rorqual.core.config import Kind, NonNegative
from rorqual.core.errors import CheckpointError
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
        """Take back what `state` gave; other names or shapes are a `CheckpointError`, before anything is changed."""


def check_state(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a state whose names or shapes are not those of `shapes`; what differs is listed."""
    problems = [f"missing {name}" for name in shapes if name not in state]
    problems += [f"left over {name}" for name in state if name not in shapes]
    problems += [
        f"{name} is {tuple(state[name].shape)}, not {shape}"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise CheckpointError(f"an optimizer's state of another shape: {shown}")


class OptimConfig(Kind):
    """Base of the optimizers. `clip`: largest global gradient norm, 0 for none."""

    schedule: Schedule = Schedule()
    clip: NonNegative = 1.0

    def build(self, params: dict[str, nn.Parameter]) -> Optimizer:
        """The optimizer of these parameters."""
        raise NotImplementedError
