"""Parsing of a verb's `key=value` arguments. Unknown keys are errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

import typer

from rorqual.core.config import Config, parse
from rorqual.core.errors import ConfigError

WHERE = "command line"
Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)]
DType = Literal["float32", "bfloat16"]


class Placement(Config):
    """Settings that most verbs accept: the device and type of tensors."""

    device: str = "cpu"
    dtype: DType = "float32"


P = TypeVar("P", bound=Config)


def pairs(arguments: Sequence[str] | None) -> dict[str, str]:
    """Return `["seed=1", "out=x"]` as a dictionary. Raises ConfigError if an argument is not `key=value` or repeats a key."""
    found: dict[str, str] = {}
    for text in arguments or ():
        key, equals, value = text.partition("=")
        if not equals or not key or text.startswith("-"):
            plain = key.lstrip("-") or "key"
            raise ConfigError(
                f"'{text}' is not key=value", where=WHERE, remedy=f"Write {plain}={value or 'VALUE'}, without dashes."
            )
        if key in found:
            raise ConfigError(f"'{key}' is given twice", where=WHERE, remedy="Give it once.")
        found[key] = value
    return found


def read(cls: type[P], arguments: Sequence[str] | None) -> P:
    """Parse the arguments as `cls`. Raises ConfigError for an unknown key, with the closest known key."""
    return parse(cls, pairs(arguments), where=WHERE)


def check_device(name: str) -> None:
    """Raise ConfigError if torch cannot put a tensor on the device."""
    from rorqual.ops import devices  # loads torch

    devices.check_device(name)
