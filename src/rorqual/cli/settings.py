"""Parsing of the `key=value` arguments of a command. Unknown keys are errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import typer
from pydantic import BeforeValidator, Field

from rorqual.core.config import Config, parse
from rorqual.core.errors import ConfigError

WHERE = "command line"
Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)]
DType = Literal["float32", "bfloat16"]


def _split(value: Any) -> Any:
    return tuple(value.split(",")) if isinstance(value, str) else value


Counts = Annotated[tuple[Annotated[int, Field(ge=1, le=2**20)], ...], BeforeValidator(_split), Field(min_length=1)]
"""Positive integers, separated by commas on the command line."""


class Placement(Config):
    """Settings that most commands accept: the device and the dtype of tensors."""

    device: str = "cpu"
    dtype: DType = "float32"


P = TypeVar("P", bound=Config)


def pairs(arguments: Sequence[str] | None) -> dict[str, str]:
    """Convert arguments such as `["seed=1", "out=x"]` to a dictionary.

    Raises ConfigError if an argument is not `key=value` or repeats a key.
    """
    values: dict[str, str] = {}
    for text in arguments or ():
        key, equals, text_value = text.partition("=")
        if not equals or not key or text.startswith("-"):
            name = key.lstrip("-") or "key"
            raise ConfigError(
                f"'{text}' is not key=value",
                where=WHERE,
                remedy=f"Write {name}={text_value or 'VALUE'}, without dashes.",
            )
        if key in values:
            raise ConfigError(f"'{key}' is given twice", where=WHERE, remedy="Give each key once.")
        values[key] = text_value
    return values


def read(cls: type[P], arguments: Sequence[str] | None) -> P:
    """Parse arguments as settings of type `cls`. Raises ConfigError for an unknown key, and suggests the closest known key."""
    return parse(cls, pairs(arguments), where=WHERE)


def check_device(name: str) -> None:
    """Raise ConfigError if torch cannot create tensors on the device."""
    from rorqual.ops import devices  # a local import, because `devices` loads torch

    devices.check_device(name)
