"""The registry of kinds, and plug-ins: modules of a user that register kinds of their own.

A class is registered when its module is imported, if it derives from a `Registered` base class and declares a name. A plug-in is
a Python file (`load_plugins`), or a module that an installed package lists in the entry point group `rorqual.plugins`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from inspect import isabstract
from pathlib import Path
from typing import Any, TypeVar

from rorqual.core.errors import ConfigError
from rorqual.core.user_code import import_file

VARIABLE = "RORQUAL_PLUGINS"
"""The environment variable with the paths of the plug-in files, separated as in PATH. Child processes read the variable."""


class Registered:
    """Base class of everything that a plug-in can add. A subclass is registered under the `name` that it declares itself."""

    @classmethod
    def registered_name(cls) -> str | None:
        """Return the name that this class declares, or None if it declares none, as abstract classes do."""
        name = vars(cls).get("name")
        return name if isinstance(name, str) and not isabstract(cls) else None


R = TypeVar("R", bound=Registered)


def kinds(base: type[R], name: object = None) -> dict[str, type[R]]:
    """Return the registered subclasses of `base` in imported modules, by name. Names of configs are their `kind`.

    A subclass that only inherits a name, without a declaration of its own, is left out. If a class was defined more than once, as
    in a notebook, the newest definition is returned. Raises ConfigError if two classes declare the same name, or, with `name`,
    only if two classes declare `name`.
    """
    by_name: dict[str, type[R]] = {}
    classes: list[type[R]] = [base]
    while classes:
        classes += (sub := classes.pop(0)).__subclasses__()
        if (own := sub.registered_name()) is None:
            continue
        known = by_name.get(own, sub)
        same = (sub.__module__, sub.__qualname__) == (known.__module__, known.__qualname__)
        if not same and name in (None, own):
            both = " and ".join(f"{cls.__module__}.{cls.__qualname__}" for cls in (known, sub))
            raise ConfigError(
                f"two classes declare the name '{own}': {both}", where=base.__name__, remedy="Rename one."
            )
        by_name[own] = sub
    return by_name


def find_kinds(base: type[R], name: object) -> dict[str, type[R]]:
    """Return `kinds(base, name)`. If `name` is unknown, first import all plug-ins, which may define it."""
    if isinstance(name, str) and name not in kinds(base, name):
        import_plugins()
    return kinds(base, name)


@cache
def import_plugins() -> None:
    """Import the plug-ins of installed packages and the files in the environment variable RORQUAL_PLUGINS. Calls after the
    first do nothing."""
    for entry in entry_points(group="rorqual.plugins"):
        entry.load()
    load_plugins(*_inherited_files())


def _inherited_files() -> list[str]:
    return [file for file in os.environ.get(VARIABLE, "").split(os.pathsep) if file]


@cache
def loaded_plugins() -> dict[str, str]:
    """The plug-in files that this process has loaded: absolute path -> SHA-256 of the file."""
    return {}


def load_plugins(*files: str | Path) -> None:
    """Import Python files that register kinds of your own, such as attention kinds, optimizers, tasks or chat formats.

    Runs that this process trains or imports record path and SHA-256 of each file. Child processes load the files too. A file
    that is already loaded and has not changed is not imported again.

    Raises ConfigError if a file is missing, raises an exception (the error names the line), registers nothing, or registers a
    name that exists already. The classes of a file whose names exist already are not registered.
    """
    for path in (Path(file).resolve() for file in files):
        digest = _sha256(path)
        if digest and loaded_plugins().get(str(path)) == digest:
            continue
        module = import_file(path, ConfigError)
        classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Registered)]
        own = [cls for cls in classes if cls.__module__ == module.__name__ and cls.registered_name() is not None]
        if not own:
            raise ConfigError(
                "the file registers nothing",
                where=str(path),
                remedy='Define a subclass with a name, such as `class Mine(AttentionConfig)` with `kind: Literal["mine"] = "mine"`.',
            )
        for cls in own:
            try:
                kinds(registry_base(cls), cls.registered_name())
            except ConfigError as error:
                for refused in own:
                    setattr(refused, "registered_name", lambda: None)  # noqa: B010
                raise ConfigError(error.what, where=str(path), remedy="Rename the class's kind or name.") from None
        loaded_plugins()[str(path)] = digest
        os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*_inherited_files(), str(path)]))


def load_recorded_plugins(recorded: object, where: str) -> None:
    """Load the plug-in files that a run recorded, if they are not loaded. `recorded` maps absolute paths to SHA-256 digests.

    The path only says where to look: a file with the recorded digest that is already loaded from another place is accepted.
    Raises ConfigError that names a file that is missing or has changed.
    """
    for path, digest in recorded.items() if isinstance(recorded, Mapping) else ():
        if digest in loaded_plugins().values():
            continue
        found = _sha256(Path(path)) if Path(path).is_absolute() else ""  # a relative path could lead into any folder
        if found != digest:
            raise ConfigError(
                f"the plug-in file {path} {'has changed since the run was made' if found else 'is missing'}",
                where=where,
                remedy="Restore the file, or give plugins=FILE with an unchanged copy. If a change leaves the model as it was, "
                f"write the new SHA-256 into the key plugins{': ' + found if found else ''}.",
            )
        load_plugins(path)


def registry_base(cls: type[Registered]) -> Any:
    """Return the ancestor of `cls` that is the base of its kinds, such as AttentionConfig: the class right below `Registered` or
    `KindConfig`, which say how names are declared."""
    return next(c for c in cls.__mro__ if any("registered_name" in vars(base) for base in c.__bases__))


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or "" if there is no such file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
