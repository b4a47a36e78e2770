"""Modules that declare which of their products a backend may fuse or precompute in an inference-only copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(nn.Module):
    """A module that describes its matrix products. `Backend.prepare` uses the description; training does not.

    - `shared_input`: names of linear maps with the same input, in groups. `shared(x)` computes them.
    - `derived`: names of methods without arguments that compute tensors [.., in, out] or [out, in] from weights alone. Each
      maps to the child or parameter that is not needed once they are known. `tensors(name)` returns them.
    - `tied`: maps a linear map's name to the child whose `weight` [out, in] it uses.
    """

    shared_input: tuple[tuple[str, ...], ...] = ()
    derived: Mapping[str, str] = {}
    tied: Mapping[str, str] = {}
    fused: nn.Module | None
    widths: tuple[int, ...] = ()
    known: Mapping[str, tuple[Tensor, ...]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.register_module("fused", None)

    def shared(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map x [.., in] to one output [.., sum of out] per group of `shared_input`, its maps' outputs concatenated."""
        if self.fused is not None:
            found: tuple[Tensor, ...] = self.fused(x).split(self.widths, dim=-1)
            return found
        outputs = [[getattr(self, name)(x) for name in group] for group in self.shared_input]
        return tuple(group[0] if len(group) == 1 else torch.cat(group, dim=-1) for group in outputs)

    def tensors(self, name: str) -> tuple[Tensor, ...]:
        """Return the tensors that method `name` of `derived` computes."""
        if name in self.known:
            return self.known[name]
        found: tuple[Tensor, ...] = getattr(self, name)()
        return found


class LinearMap(nn.Module):
    """A linear map x [.., in] -> [.., out] that is not an `nn.Linear`. `inner` is the largest inner width of its
    products, other than that of x.
    """

    inner = 0
    linear: Callable[..., Tensor] = staticmethod(F.linear)
    """Computes a product x @ weight^T + bias. `Backend.route` replaces it by the backend's."""

    @property
    def weight(self) -> Tensor:
        """The equivalent matrix [out, in]."""
        raise NotImplementedError
