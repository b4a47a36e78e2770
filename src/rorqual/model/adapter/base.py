"""What every way of tuning offers, and the plainest: all of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from rorqual.core.config import Kind
from rorqual.model.decoder import Decoder

Selection = tuple[tuple[int, ...], ...]
"""Experts by number, ascending, of each mixture-of-experts layer of the main model."""
Shapes = dict[str, tuple[int, ...]]


class Tune(Kind):
    """Base of what a run trains. `whole`: a checkpoint holds the model; else it holds what was trained, beside a named base."""

    @property
    def whole(self) -> bool:
        """Whether all of the model is trained, its routers' biases included."""
        return False

    @property
    def selects(self) -> bool:
        """Whether `attach` must be given experts that were found by reading some of the run's data."""
        return False

    def attach(self, model: Decoder, *, seed: int, experts: Selection = ()) -> None:
        """Freeze `model` but for what is trained, in place, and add what there is to add; no logit changes.

        The model must not be moved to another device or type afterwards. Errors: `ConfigError` where nothing fits.
        """
        raise NotImplementedError

    def shapes(self, model: Decoder, experts: Selection = ()) -> Shapes:
        """Name and shape of everything that is trained of a `model` on which nothing is attached."""
        raise NotImplementedError

    def merge(self, model: Decoder, tensors: Mapping[str, Tensor]) -> None:
        """Put what was trained, named as in `shapes`, into the weights of a `model` on which nothing is attached."""
        raise NotImplementedError


class Full(Tune):
    """Everything."""

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
    """A module that trains slices of its tensors: parameters that share their memory and are no parameters of the module."""

    def parts(self) -> Iterator[tuple[str, nn.Parameter]]: ...


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What of `model` is trained, by name: the only tensors that have gradients and a place in an optimizer."""
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for prefix, module in model.named_modules():
        if isinstance(module, HoldsParts):
            found |= {f"{prefix}.{name}": part for name, part in module.parts()}
    return found
