"""Backends: who computes. `backend(name)` finds one; a subclass of `Backend` with a name of its own is found, too, wherever it is defined."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from rorqual.core.errors import ConfigError, nearest
from rorqual.core.user_code import import_file
from rorqual.ops.backends.attention import PagedAttention
from rorqual.ops.backends.base import Backend, Experts, Fit
from rorqual.ops.backends.layout import fault_of
from rorqual.ops.backends.torch import Torch
from rorqual.ops.backends.torch_invariant import TorchInvariant

__all__ = ["REFERENCE", "TORCH", "TORCH_INVARIANT", "Backend", "Experts", "Fit", "arithmetic_of", "backend", "resolved"]

REFERENCE, TORCH, TORCH_INVARIANT = Backend(), Torch(), TorchInvariant()


def backend(name: str) -> Backend:
    """The backend called `name`: `reference` is the slow truth, `torch` is proven equal to it, `torch-invariant` is what engines run on;
    `./mine.py:Class` is a user's, in a file.

    Raises ConfigError for an unknown name, for one that two classes have, and for a backend that lays out blocks in one method otherwise than
    in another.
    """
    if (placed := in_file(name)) is not None:
        cls = _in_file(*placed)
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


def in_file(name: str) -> tuple[Path, str] | None:
    """The file of the backend `./mine.py:Class`, resolved, and its class; None for any other name."""
    path, _, cls = name.rpartition(":")
    return (Path(path).resolve(), cls) if path.endswith(".py") else None


def resolved(name: str) -> str:
    """`name`, which for a backend in a file holds in any folder."""
    placed = in_file(name)
    return name if placed is None else f"{placed[0]}:{placed[1]}"


def arithmetic_of(name: str) -> str:
    """What stands for the arithmetic of a backend where answers or blocks are kept: its name, or its class and the digest of its file."""
    placed = in_file(name)
    return name if placed is None else f"{placed[1]} {hashlib.sha256(placed[0].read_bytes()).hexdigest()}"


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
