"""Backends: who computes. `backend(name)` finds one; a subclass of `Backend` with a name of its own is found, too, wherever it is defined."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from rorqual.core.errors import ConfigError, nearest
from rorqual.core.user_code import import_file
from rorqual.ops.backends.attention import PagedAttention
from rorqual.ops.backends.base import Backend, Experts, Fit
from rorqual.ops.backends.layout import fault_of
from rorqual.ops.backends.torch import Torch
from rorqual.ops.backends.torch_invariant import TorchInvariant

__all__ = ["REFERENCE", "TORCH", "TORCH_INVARIANT", "Backend", "Experts", "Fit", "backend"]

REFERENCE, TORCH, TORCH_INVARIANT = Backend(), Torch(), TorchInvariant()


def backend(name: str) -> Backend:
    """The backend called `name`: `reference` is the slow truth, `torch` is proven equal to it, `torch-invariant` is what engines run on;
    `./mine.py:Class` is a user's, in a file.

    Raises ConfigError for an unknown name, for one that two classes have, and for a backend that lays out blocks in one method otherwise than
    in another.
    """
    path, _, name_there = name.rpartition(":") if ".py:" in name else ("", "", "")
    if path:
        cls = _in_file(Path(path).resolve(), name_there)
    else:
        known = _known()
        if name not in known:
            remedy = nearest(name, known) + " Or ./mine.py:Class."
            raise ConfigError(f"unknown backend '{name}'", where="backend", remedy=remedy)
        cls = known[name]
    if (fault := _fault(cls)) is not None:  # type: ignore[arg-type]  # mypy takes a class for no hashable
        raise ConfigError(
            f"the attention of {cls.__qualname__} contradicts itself: {fault}",
            where=f"backend={name}",
            remedy="Where blocks lie otherwise, override shape, as_blocks, lay_out, read, fill and write together (PagedAttention).",
        )
    return cls()


def _known() -> dict[str, type[Backend]]:
    """By name. Of a class that was defined again, as in a notebook, the newest."""
    known, classes = dict[str, type[Backend]](), [Backend]
    while classes:
        one = classes.pop(0)
        classes += one.__subclasses__()
        if "name" not in vars(one):
            continue
        other = known.get(one.name, one)
        if (one.__module__, one.__qualname__) != (other.__module__, other.__qualname__):
            both = " and ".join(f"{cls.__module__}.{cls.__qualname__}" for cls in (other, one))
            raise ConfigError(f"two backends are called '{one.name}': {both}", where="backend", remedy="Rename one.")
        known[one.name] = one
    return known


@lru_cache
def _in_file(path: Path, name: str) -> type[Backend]:
    found = getattr(import_file(path, ConfigError), name, None)
    if not (isinstance(found, type) and issubclass(found, Backend)):
        what = f"has no backend '{name}'"
        raise ConfigError(what, where=str(path), remedy="Write `class Mine(rorqual.ops.backends.Backend)` there.")
    if "name" not in vars(found):
        raise ConfigError(f"'{name}' has no name of its own", where=str(path), remedy='Write `name = "mine"` in it.')
    return found


@lru_cache
def _fault(cls: type[Backend]) -> str | None:
    attention = cls().attention
    return None if type(attention) is PagedAttention else fault_of(attention)
