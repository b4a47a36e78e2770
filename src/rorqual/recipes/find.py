"""Look up recipes by name, and call them with the `key=value` arguments of a command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from rorqual.core.config import override_fields, parse_scalar
from rorqual.core.errors import ConfigError, suggest_name
from rorqual.recipes.distil import distil, on_policy
from rorqual.recipes.dpo import dpo
from rorqual.recipes.grpo import grpo
from rorqual.recipes.pretrain import pretrain
from rorqual.recipes.sft import sft
from rorqual.train.run import Run

RECIPES: Mapping[str, Callable[..., Run]] = {
    "pretrain": pretrain,
    "sft": sft,
    "grpo": grpo,
    "dpo": dpo,
    "distil": distil,
    "on_policy": on_policy,
}
ALIASES = {"from": "start"}
"""`from` is a Python keyword, so recipes call this argument `start`."""
SETTINGS = tuple(name for name in Run.model_fields if name not in ("extensions", "frozen_models", "plugins"))
"""The fields of a run that users can set, without the fields that only the training loop writes."""


def recipe_names() -> dict[str, str]:
    """Return the first line of each recipe's docstring, by name."""
    return {name: (inspect.getdoc(recipe) or "").split("\n")[0] for name, recipe in RECIPES.items()}


def make_run(name: str, values: Mapping[str, str]) -> Run:
    """Return the run that the recipe `name` creates from `key=value` arguments.

    If a key is a parameter of the recipe, the key's value is passed to the recipe. Any other field of `Run`, or a dotted key
    such as `optim.lr`, overrides the value that the recipe chose.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe '{name}'", where="train", remedy=suggest_name(name, RECIPES))
    recipe = RECIPES[name]
    takes, hints = inspect.signature(recipe).parameters, get_type_hints(recipe, include_extras=True)
    arguments: dict[str, Any] = {}
    overrides: list[str] = []
    for key, raw in values.items():
        parameter = ALIASES.get(key, key)
        if parameter in takes:
            arguments[parameter] = _parse_setting(key, raw, hints[parameter])
        elif key in SETTINGS or ("." in key and not key.startswith("extensions.")):
            overrides.append(f"{key}={raw}")
        else:
            known = [*takes, *ALIASES, *SETTINGS]
            known.remove("start")
            raise ConfigError(f"unknown key '{key}'", where=f"train {name}", remedy=suggest_name(key, known))
    missing = [p.name for p in takes.values() if p.default is inspect.Parameter.empty and p.name not in arguments]
    if missing:
        spelled = ", ".join(f"{'from' if m == 'start' else m}=" for m in missing)
        raise ConfigError(
            f"recipe '{name}' requires {spelled}", where=f"train {name}", remedy=f"See `rorqual train {name} --help`."
        )
    try:
        run = recipe(**arguments)
    except ValidationError as error:
        raise _setting_error(error, ".".join(str(part) for part in error.errors()[0]["loc"]), f"train {name}") from None
    return override_fields(run, overrides, where=f"train {name}")


def _parse_setting(key: str, raw: str, kind: Any) -> Any:
    value = raw if kind is str else parse_scalar(raw)
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise _setting_error(error, key, "command line") from None


def _setting_error(error: ValidationError, key: str, where: str) -> ConfigError:
    details = error.errors()[0]
    return ConfigError(
        f"key '{key}': {details['msg']} (got {details['input']!r})", where=where, remedy="Correct the value."
    )
