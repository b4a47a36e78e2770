"""Modules that state which of their products a backend may fuse or compute ahead, in a copy that nobody trains."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Layer(nn.Module):
    """A module with facts about its products. `Backend.prepare` uses them; training does not.

    shared_input: names of linear maps that read the same rows, in groups. `shared(x)` computes them.
    derived: names of methods without arguments that compute tensors [.., in, out] or [out, in] from weights alone, each with the child or
    parameter that is not needed once they are known. `tensors(name)` gives them.
    tied: a linear map's name, and the child whose `weight` [out, in] it multiplies by.
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
        """x [.., in] -> for each group of `shared_input` its maps' outputs side by side, [.., sum of out]."""
        if self.fused is not None:
            found: tuple[Tensor, ...] = self.fused(x).split(self.widths, dim=-1)
            return found
        outputs = [[getattr(self, name)(x) for name in group] for group in self.shared_input]
        return tuple(group[0] if len(group) == 1 else torch.cat(group, dim=-1) for group in outputs)

    def tensors(self, name: str) -> tuple[Tensor, ...]:
        """What the method `name` of `derived` computes."""
        if name in self.known:
            return self.known[name]
        found: tuple[Tensor, ...] = getattr(self, name)()
        return found


class LinearMap(nn.Module):
    """A linear map x [.., in] -> [.., out] that is no `nn.Linear`. `inner`: the most columns of what it multiplies on the way, beside x."""

    inner = 0

    @property
    def weight(self) -> Tensor:
        """The one matrix [out, in] that it stands for."""
        raise NotImplementedError
