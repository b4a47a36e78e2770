"""Parsing of a command's `key=value` options, and the list of options in the command's help. An unknown key is an error."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import BeforeValidator, Field
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from rorqual.cli.recipe_keys import DEFAULTS, recipe_rows
from rorqual.core.config import Config, parse_config
from rorqual.core.errors import CheckpointError, ConfigError
from rorqual.core.records import RunDir
from rorqual.core.registry import load_plugins

WHERE = "command line"
Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)]
DType = Literal["float32", "bfloat16"]


def _split_commas(value: Any) -> Any:
    return tuple(value.split(",")) if isinstance(value, str) else value


Counts = Annotated[
    tuple[Annotated[int, Field(ge=1, le=2**20)], ...], BeforeValidator(_split_commas), Field(min_length=1)
]
"""Positive integers, separated by commas on the command line."""


class DeviceSettings(Config):
    """Settings that most commands accept: the device and the dtype of tensors."""

    device: str = Field("cpu", description="device of the tensors")
    dtype: DType = Field("float32", description="type of the tensors")


class EngineSettings(DeviceSettings):
    """Settings of commands that load a run into an engine."""

    dtype: Literal["float32", "bfloat16", "int8", "int4"] = Field(  # type: ignore[assignment]  # one type more
        "float32", description="type of the weights; int8 and int4 need the native kernels"
    )
    backend: str = Field(
        "auto", description="auto, native, torch-invariant, torch or ./mine.py:Class; auto: native if it can"
    )


P = TypeVar("P", bound=Config)


def split_pairs(arguments: Sequence[str] | None) -> dict[str, str]:
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


def parse_settings(cls: type[P], arguments: Sequence[str] | None) -> P:
    """Parse `key=value` arguments as settings of type `cls`. For an unknown key, raises ConfigError that suggests the closest
    known key."""
    return parse_config(cls, split_pairs(arguments), where=WHERE)


def pop_settings(cls: type[P], values: dict[str, str]) -> P:
    """Remove the fields of `cls` from `values`, and return the removed values as settings of type `cls`."""
    return parse_config(cls, {key: values.pop(key) for key in cls.model_fields if key in values}, where=WHERE)


def refuse_ineffective_settings(chosen: Config, effective: Collection[str], folder: str) -> None:
    """Raise ConfigError if a setting is given that has no effect on what `rorqual teach` chose in `folder`."""
    if others := chosen.model_fields_set.difference(effective):
        raise ConfigError(
            f"it has no effect on what `rorqual teach` chose in {folder}",
            where=f"key '{min(others)}'",
            remedy=f"Leave it out. For the language model alone, if there is one, give {Path(folder) / 'model'}.",
        )


def check_device(name: str) -> None:
    """Raise ConfigError if torch cannot create tensors on the device called `name`."""
    from rorqual.ops import devices  # a local import, because `devices` loads torch

    devices.check_device(name)


PLUGINS = ("plugins=", "Python files with kinds of your own, separated by commas")
"""The option of all commands with `key=value` options that loads plug-ins, and its help."""


def load_plugin_arguments(arguments: Sequence[str]) -> list[str]:
    """Load the plug-ins of a command line, and return the arguments without `plugins=`.

    The plug-ins are the files in `plugins=` and those that the run folders among the arguments record. Raises ConfigError if a
    file cannot be loaded or has changed since a run recorded it.
    """
    given = [text for text in arguments if text.startswith(PLUGINS[0])]
    files = split_pairs(given).get("plugins", "")
    load_plugins(*filter(None, files.split(",")))
    rest = [text for text in arguments if text not in given]
    for run in (RunDir(Path(name)) for text in rest for name in text.rpartition("=")[2].split(",") if name):
        if os.path.isfile(run.config_file):  # also False for a value that is too long for a path
            with suppress(CheckpointError):  # the command itself reports a broken run.yaml
                run.config()
    return rest


class VerbCommand(TyperCommand):
    """A command whose help lists its `key=value` options, and those of the recipe in `train RECIPE`. Plug-ins are loaded before
    the command parses its options."""

    options: Mapping[str, str] = {}
    """The options that the command's help lists: heading -> settings class, written as `module:Class`. The modules are
    imported when the help is shown."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["recipes"] = [word for word in args if word in DEFAULTS] if self.name == "train" else []
        return super().parse_args(ctx, load_plugin_arguments(args) if self.options else args)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        for recipe in ctx.meta["recipes"]:
            with formatter.section(f"Keys of the recipe {recipe}"):
                formatter.write_dl(recipe_rows(recipe))
        for heading, place in self.options.items():
            module, _, name = place.partition(":")
            with formatter.section(heading):
                formatter.write_dl(option_rows(getattr(import_module(module), name)))
        if self.options:
            with formatter.section("Keys of all commands"):
                formatter.write_dl([PLUGINS])
        super().format_epilog(ctx, formatter)


def option_rows(settings: type[Config]) -> list[tuple[str, str]]:
    """Return `key=default` and the description of each field that has a description. The fields of `EngineSettings` come
    last."""
    fields = sorted(settings.model_fields.items(), key=lambda item: item[0] in EngineSettings.model_fields)
    return [(f"{name}={_default_text(field)}", field.description) for name, field in fields if field.description]


def _default_text(field: FieldInfo) -> str:
    """Return a field's default as typed on the command line. For a `Literal`, the other choices follow the default."""
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if field.is_required() or field.default in (None, {}, ()):
        return "|".join(map(str, choices))
    default = field.default
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    if isinstance(default, float):
        return f"{default:g}"
    return "|".join(map(str, (default, *(choice for choice in choices if choice != default))))
