"""Base class of the kinds of tuning, and full fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from rorqual.core.config import Kind
from rorqual.model.decoder import Decoder

Selection = tuple[tuple[int, ...], ...]
"""The selected experts of each mixture-of-experts layer in the main model, by number, ascending."""
Shapes = dict[str, tuple[int, ...]]


class Tune(Kind):
    """Base class of what a run trains.

    If `whole`, a checkpoint holds the model. Otherwise it holds only the trained tensors and names its base.
    """

    @property
    def whole(self) -> bool:
        """True if the whole model is trained, including its routers' biases."""
        return False

    @property
    def selects(self) -> bool:
        """True if `attach` needs experts that were selected by reading some of the run's data."""
        return False

    def attach(self, model: Decoder, *, seed: int, experts: Selection = ()) -> None:
        """Freeze `model` in place, except for what is trained, and add the adapter. Logits do not change.

        Afterwards the model must not move to another device or type. Raises ConfigError if nothing in the model
        matches.
        """
        raise NotImplementedError

    def shapes(self, model: Decoder, experts: Selection = ()) -> Shapes:
        """Return the name and shape of every trained tensor. `model` must have no adapter attached."""
        raise NotImplementedError

    def merge(self, model: Decoder, tensors: Mapping[str, Tensor]) -> None:
        """Merge trained tensors, named as in `shapes`, into the weights of `model`, which must have no adapter attached."""
        raise NotImplementedError


class Full(Tune):
    """Train the whole model."""

    kind: Literal["full"] = "full"

    @property
    def whole(self) -> bool:
        return True

    def attach(self, model: Decoder, *, seed: int, experts: Selection = ()) -> None:
        return None

    def shapes(self, model: Decoder, experts: Selection = ()) -> Shapes:
        return {name: tuple(p.shape) for name, p in model.named_parameters()}


@runtime_checkable
class HoldsParts(Protocol):
    """A module that trains slices of its tensors. The slices share memory with the tensors and are not registered parameters."""

    def parts(self) -> Iterator[tuple[str, nn.Parameter]]: ...


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name. Only these have gradients and optimizer state."""
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for prefix, module in model.named_modules():
        if isinstance(module, HoldsParts):
            found |= {f"{prefix}.{name}": part for name, part in module.parts()}
    return found
