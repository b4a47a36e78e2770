"""Backends: who computes. `backend(name)` finds one; a subclass of `Backend` with a name of its own is found, too, wherever it is defined."""

from __future__ import annotations

from rorqual.core.errors import ConfigError, nearest
from rorqual.ops.backends.base import Backend, Experts, Fit
from rorqual.ops.backends.torch import Torch
from rorqual.ops.backends.torch_invariant import TorchInvariant

__all__ = ["REFERENCE", "TORCH", "TORCH_INVARIANT", "Backend", "Experts", "Fit", "backend"]

REFERENCE, TORCH, TORCH_INVARIANT = Backend(), Torch(), TorchInvariant()


def backend(name: str) -> Backend:
    """The backend called `name`: `reference` is the slow truth, `torch` is proven equal to it, `torch-invariant` is what engines run on.

    Raises ConfigError for an unknown name.
    """
    known, classes = dict[str, type[Backend]](), [Backend]
    while classes:
        one = classes.pop()
        classes += one.__subclasses__()
        if "name" in vars(one):
            known[one.name] = one
    if name not in known:
        raise ConfigError(f"unknown backend '{name}'", where="backend", remedy=nearest(name, known))
    return known[name]()
