"""Base class of the kinds of fine-tuning, and full fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from rorqual.core.config import KindConfig
from rorqual.model.decoder import Decoder

SelectedExperts = tuple[tuple[int, ...], ...]
"""The indices of the selected experts of each MoE layer of the main model. The expert indices of a layer ascend."""
Shapes = dict[str, tuple[int, ...]]


class Tune(KindConfig):
    """Base class of the kinds of fine-tuning.

    If `trains_all` is True, a checkpoint of the run holds the complete model. If `trains_all` is False, a checkpoint of the run
    holds only the trained tensors and refers to the base model.
    """

    @property
    def trains_all(self) -> bool:
        """Whether all parameters are trained. If some parameters are frozen, load balancing leaves the router biases
        unchanged."""
        return False

    def attach(self, model: Decoder, *, seed: int, experts: SelectedExperts = ()) -> None:
        """Freeze the parameters of `model` that are not trained, in place, and add the adapter.

        Attaching an adapter does not change the logits of the model.

        Do not move the model to another device or dtype after `attach`. Raises ConfigError if the model has no parameters that
        the kind of fine-tuning can train.
        """
        raise NotImplementedError

    def trained_shapes(self, model: Decoder, experts: SelectedExperts = ()) -> Shapes:
        """Return the shape of every trained tensor by name. No adapter may be attached to `model`."""
        raise NotImplementedError

    def merge(self, model: Decoder, tensors: Mapping[str, Tensor]) -> None:
        """Merge trained tensors into the weights of `model`. `tensors` has the names that `trained_shapes` returns."""
        raise NotImplementedError


class FullTuning(Tune):
    """Full fine-tuning: train all parameters."""

    kind: Literal["full"] = "full"

    @property
    def trains_all(self) -> bool:
        return True

    def attach(self, model: Decoder, *, seed: int, experts: SelectedExperts = ()) -> None:
        return None

    def trained_shapes(self, model: Decoder, experts: SelectedExperts = ()) -> Shapes:
        return {name: tuple(p.shape) for name, p in model.named_parameters()}


@runtime_checkable
class HasTrainedSlices(Protocol):
    """A module that trains slices of its tensors.

    `trained_slices` yields the trained slices as parameters. The yielded parameters share memory with the module's tensors and
    are not registered in the module.
    """

    def trained_slices(self) -> Iterator[tuple[str, nn.Parameter]]: ...


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name. Only the returned parameters have gradients and optimizer state."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for prefix, module in model.named_modules():
        if isinstance(module, HasTrainedSlices):
            parameters |= {f"{prefix}.{name}": part for name, part in module.trained_slices()}
    return parameters
