"""Compute backends. `backend(name)` finds one by name, including a user's subclass of `Backend` wherever it is defined."""

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
    """Return the backend called `name`.

    `reference` is the slow reference. `torch` is tested to agree with it. `torch-invariant` is the engines' default.
    `./mine.py:Class` loads a user's backend from a file.

    Raises ConfigError for an unknown name, a name that two classes share, and a backend whose methods use different
    block layouts.
    """
    if (placed := in_file(name)) is not None:
        cls = _in_file(*placed)
    else:
        known = _known()
        if name not in known:
            remedy = nearest(name, known) + " A backend of your own is ./mine.py:Class."
            raise ConfigError(f"unknown backend '{name}'", where="backend", remedy=remedy)
        cls = known[name]
    if (fault := _fault(cls)) is not None:  # type: ignore[arg-type]  # mypy does not treat a class as hashable
        raise ConfigError(
            f"the attention methods of {cls.__qualname__} disagree about the block layout: {fault}",
            where=f"backend={name}",
            remedy="Override shape, as_blocks, lay_out, read, fill and write of PagedAttention together.",
        )
    return cls()


def in_file(name: str) -> tuple[Path, str] | None:
    """Return the absolute path and the class of a backend `./mine.py:Class`, or None for any other name."""
    path, _, cls = name.rpartition(":")
    return (Path(path).resolve(), cls) if path.endswith(".py") else None


def resolved(name: str) -> str:
    """Return `name` with the absolute path of a backend in a file, so that it is valid in any folder."""
    placed = in_file(name)
    return name if placed is None else f"{placed[0]}:{placed[1]}"


def arithmetic_of(name: str) -> str:
    """Return the key of a backend in caches: its name, or its class and the digest of its file."""
    placed = in_file(name)
    return name if placed is None else f"{placed[1]} {hashlib.sha256(placed[0].read_bytes()).hexdigest()}"


def _known() -> dict[str, type[Backend]]:
    """Return all backends by name. If a class was redefined, as in a notebook, the newest counts."""
    known, classes = dict[str, type[Backend]](), [Backend]
    while classes:
        one = classes.pop(0)
        classes += one.__subclasses__()
        if "name" not in vars(one):
            continue
        other = known.get(one.name, one)
        if (one.__module__, one.__qualname__) != (other.__module__, other.__qualname__):
            both = " and ".join(f"{cls.__module__}.{cls.__qualname__}" for cls in (other, one))
            raise ConfigError(f"two backends have the name '{one.name}': {both}", where="backend", remedy="Rename one.")
        known[one.name] = one
    return known


@lru_cache
def _in_file(path: Path, name: str) -> type[Backend]:
    found = getattr(import_file(path, ConfigError), name, None)
    if not (isinstance(found, type) and issubclass(found, Backend)):
        what = f"the file defines no backend '{name}'"
        raise ConfigError(what, where=str(path), remedy="Define it as a subclass of `rorqual.ops.backends.Backend`.")
    if "name" not in vars(found):
        raise ConfigError(
            f"backend '{name}' does not set `name`", where=str(path), remedy='Add `name = "mine"` to the class.'
        )
    return found


@lru_cache
def _fault(cls: type[Backend]) -> str | None:
    attention = cls().attention
    return None if type(attention) is PagedAttention else fault_of(attention)
