"""Base classes of the optimizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Executor

from torch import Tensor, nn

from rorqual.core.config import KindConfig, NonNegative
from rorqual.core.errors import CheckpointError
from rorqual.model.load.names import find_differences, list_first_names
from rorqual.train.schedule import LearningRateSchedule


class Optimizer(ABC):
    """An optimizer of named parameters. The optimizer state is saved and loaded as named tensors."""

    @abstractmethod
    def step(self, grads: dict[str, Tensor], factor: float, pool: Executor | None = None) -> None:
        """Update the parameters. All learning rates are multiplied by `factor`, which comes from the schedule.

        `pool` may be used to update parameters in parallel. The updated parameters must be bit-identical with and without
        `pool`.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return the optimizer state as named tensors. A resumed run loads the tensors of this state."""

    @abstractmethod
    def load(self, state: dict[str, Tensor]) -> None:
        """Load a saved optimizer state. If names or shapes of its tensors differ from the optimizer's, raises CheckpointError
        and leaves the optimizer unchanged."""


def check_state(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError if the names or shapes of an optimizer state's tensors differ from `shapes`."""
    if problems := find_differences({name: tuple(tensor.shape) for name, tensor in state.items()}, shapes):
        raise CheckpointError(f"the optimizer state does not match: {list_first_names(problems)}")


class OptimConfig(KindConfig):
    """Base class of the optimizers' configs. Gradients are clipped to a global norm of `clip`. `clip=0` disables clipping."""

    schedule: LearningRateSchedule = LearningRateSchedule()
    clip: NonNegative = 1.0

    def build(self, params: dict[str, nn.Parameter]) -> Optimizer:
        """Build the optimizer of `params`, which maps names to parameters."""
        raise NotImplementedError
