"""Compute backends.

`backend(name)` finds any imported subclass of `Backend` by its name, including subclasses that a user wrote.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from rorqual.core.errors import ConfigError, suggest_name
from rorqual.core.registry import find_kinds
from rorqual.core.user_code import import_file
from rorqual.ops.backends.attention import PagedAttention
from rorqual.ops.backends.layout_check import find_layout_error
from rorqual.ops.backends.reference import Backend, Experts, FittedBackend
from rorqual.ops.backends.torch import Torch
from rorqual.ops.backends.torch_invariant import TorchInvariant

__all__ = [
    "REFERENCE",
    "TORCH",
    "TORCH_INVARIANT",
    "Backend",
    "Experts",
    "FittedBackend",
    "absolute_backend_name",
    "backend",
    "backend_cache_id",
]

REFERENCE, TORCH, TORCH_INVARIANT = Backend(), Torch(), TorchInvariant()


def backend(name: str) -> Backend:
    """Return the backend called `name`.

    The backend `reference` is slow and simple. The backend `torch` is fast and agrees with `reference` within rounding. The
    backend `torch-invariant` is batch-invariant, and inference engines use it where the kernels of `native` cannot run the model. A
    name such as `./mine.py:Class` loads a backend from a file.

    Raises ConfigError if no backend class or more than one backend class has the name `name`, or if the methods of the backend
    use different block layouts.
    """
    if (location := parse_file_name(name)) is not None:
        cls = _load_file(*location)
    else:
        known = find_kinds(Backend, name)
        if name not in known:
            remedy = suggest_name(name, known) + " Load your own backend with ./mine.py:Class."
            raise ConfigError(f"unknown backend '{name}'", where="backend", remedy=remedy)
        cls = known[name]
    if (fault := _layout_error(cls)) is not None:  # type: ignore[arg-type]  # mypy does not treat a class as hashable
        raise ConfigError(
            f"the attention methods of {cls.__qualname__} disagree about the block layout: {fault}",
            where=f"backend={name}",
            remedy="Override shape, as_blocks, prepack_blocks, read, fill and write of PagedAttention together.",
        )
    return cls()


def parse_file_name(name: str) -> tuple[Path, str] | None:
    """Parse a backend name of the form `./mine.py:Class`. Return the absolute path and the class name, or None for a backend
    name without a file."""
    path, _, cls = name.rpartition(":")
    return (Path(path).resolve(), cls) if path.endswith(".py") else None


def absolute_backend_name(name: str) -> str:
    """Make the path in a backend name such as `./mine.py:Class` absolute, so that the backend name is valid in any working
    directory."""
    location = parse_file_name(name)
    return name if location is None else f"{location[0]}:{location[1]}"


def backend_cache_id(name: str) -> str:
    """Return the string that identifies a backend in cache keys: the backend's name, or for a backend from a file its class
    name and the digest of the file."""
    location = parse_file_name(name)
    return name if location is None else f"{location[1]} {hashlib.sha256(location[0].read_bytes()).hexdigest()}"


@lru_cache
def _load_file(path: Path, name: str) -> type[Backend]:
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
def _layout_error(cls: type[Backend]) -> str | None:
    attention = cls().attention
    return None if type(attention) is PagedAttention else find_layout_error(attention)
