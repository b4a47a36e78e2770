"""Errors for optional dependencies that are not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rorqual.core.errors import ConfigError


@contextmanager
def require_extra(name: str, *modules: str) -> Iterator[None]:
    """Raise a ConfigError if an import in the `with` block fails because one of `modules` is not installed.

    The error names `name`, the pip extra that installs the modules.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in modules:
            raise
        raise ConfigError(
            f"{error.name} is not installed", where=name, remedy=f'pip install "rorqual[{name}]"'
        ) from None
