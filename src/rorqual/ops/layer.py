"""Modules that declare which of their matrix products a backend may fuse or precompute for inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rorqual.core.errors import ConfigError


class Layer(nn.Module):
    """A module that describes its matrix products to `Backend.prepare`. Training does not use `shared_input`, `derived` and
    `tied`.

    - `shared_input`: groups of names of linear maps that have the same input. `apply_shared_input(x)` applies all maps in `shared_input`.
    - `derived`: maps the name of a method to the name of a submodule or parameter. `Backend.prepare` stores the method's result
      and removes the submodule or parameter. The method in `derived` has no arguments and computes tensors [.., in, out] or
      [out, in] from weights. `derived_tensors(name)` returns the tensors that the method `name` computes.
    - `reads_blocks`: names of linear maps that read other rows than the tokens', such as one row per block of tokens. An engine
      cannot add an adapter's product to the outputs of these maps.
    - `tied`: maps the name of a linear map to the submodule that provides its `weight` [out, in].
    """

    shared_input: tuple[tuple[str, ...], ...] = ()
    derived: Mapping[str, str] = {}
    reads_blocks: tuple[str, ...] = ()
    tied: Mapping[str, str] = {}
    fused: nn.Module | None
    widths: tuple[int, ...] = ()
    known: Mapping[str, tuple[Tensor, ...]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.register_module("fused", None)

    def apply_shared_input(self, x: Tensor) -> tuple[Tensor, ...]:
        """Apply all linear maps of `shared_input` to x [.., in].

        Returns one tensor per group of `shared_input`: the concatenated outputs of the group's linear maps.
        """
        if self.fused is not None:
            groups: tuple[Tensor, ...] = self.fused(x).split(self.widths, dim=-1)
            return groups
        outputs = [[getattr(self, name)(x) for name in group] for group in self.shared_input]
        return tuple(group[0] if len(group) == 1 else torch.cat(group, dim=-1) for group in outputs)

    def derived_tensors(self, name: str) -> tuple[Tensor, ...]:
        """Return the tensors of the method `name` in `derived`. Each call of `derived_tensors` computes the tensors, unless a
        backend has precomputed the tensors."""
        if name in self.known:
            return self.known[name]
        source = getattr(self, self.derived[name])
        source = getattr(source, "_orig_mod", source)  # of a compiled module
        if isinstance(source, nn.Module) and not _computes_by_weight(source):
            raise ConfigError(
                f"{self.derived[name]} is a {type(source).__name__}, but {type(self).__name__} reads its weight without calling it",
                where=type(self).__name__,
                remedy="Merge the adapter into the weight, or train with tune.kind=lora.",
            )
        computed: tuple[Tensor, ...] = getattr(self, name)()
        return computed


class LinearMap(nn.Module):
    """Base class of linear maps x [.., in] -> [.., out] that are not `nn.Linear`.

    `inner` is the largest number of columns of a matrix product inside the linear map, such as LoRA's rank.
    """

    inner = 0
    linear: Callable[..., Tensor] = staticmethod(F.linear)
    """Function that computes a product x @ weight^T + bias. `Backend.route_linears` replaces the function by the backend's
    `linear`."""

    @property
    def weight(self) -> Tensor:
        """The matrix [out, in] of the linear map."""
        raise NotImplementedError


def _computes_by_weight(module: nn.Module) -> bool:
    """Return whether the output of `module` is a product with its `weight`. A subclass of `nn.Linear` with a `forward` of its own
    must say so by `computes_by_weight`."""
    plain = type(module).forward is nn.Linear.forward or getattr(module, "computes_by_weight", False)
    return isinstance(module, LinearMap) or plain
