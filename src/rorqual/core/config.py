"""Configuration: frozen pydantic models, strict parsing, dotted overrides, and YAML that round-trips.

Each component defines a config class, and a parent config contains the component's config instead of repeating the fields. A
field that accepts several config classes, such as the attention variants, is declared with `one_of(Base)`. In the value of a
field with `one_of(Base)`, the key `kind` selects the subclass of `Base`. A new subclass of `Base` takes one new file and no
registry entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from inspect import get_annotations
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model, validate_call

from rorqual.core.errors import ConfigError, suggest_name
from rorqual.core.registry import Registered, find_kinds, registry_base
from rorqual.core.registry import kinds as kinds


def _reject_bool(value: Any) -> Any:
    if isinstance(value, bool):  # Python's bool is an int, so `steps=yes` would pass as 1
        raise ValueError("expected a number, not a boolean")
    return value


MOST, LARGEST = 2**31 - 1, 1e37
"""Upper bounds of integer and float fields: the largest signed 32-bit integer, and a value that fits in float32."""
_NUMBER = BeforeValidator(_reject_bool)
Count = Annotated[int, _NUMBER, Field(ge=1, le=MOST)]
Natural = Annotated[int, _NUMBER, Field(ge=0, le=MOST)]
Rows = Annotated[int, _NUMBER, Field(ge=1, le=2**16)]
"""Number of rows in a training batch."""
RowLength = Annotated[int, _NUMBER, Field(ge=8, le=2**22)]
"""Number of tokens in each row of a training batch."""
Seed = Annotated[int, _NUMBER, Field(ge=0, lt=2**63)]
Bytes = Annotated[int, _NUMBER, Field(ge=0, lt=2**63)]
Positive = Annotated[float, _NUMBER, Field(gt=0, le=LARGEST, allow_inf_nan=False)]
NonNegative = Annotated[float, _NUMBER, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
Share = Annotated[float, _NUMBER, Field(ge=0, le=1, allow_inf_nan=False)]
Part = Annotated[float, _NUMBER, Field(gt=0, le=1, allow_inf_nan=False)]
"""A share from 0 to 1 that must be above 0."""
Momentum = Annotated[float, _NUMBER, Field(ge=0, lt=1, allow_inf_nan=False)]
Temperature = Annotated[float, _NUMBER, Field(ge=1e-3, le=1e3, allow_inf_nan=False)]
"""A temperature that divides logits or log-probabilities, so the temperature must not be 0."""
ReplyTemperature = Annotated[float, _NUMBER, Field(ge=0, le=2, allow_inf_nan=False)]
"""The sampling temperature of a reply. The temperature 0 means greedy decoding."""


class Config(BaseModel):
    """Base class of all configs. Instances are frozen, and unknown keys raise an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, validate_default=True)


class KindConfig(Config, Registered):
    """Base class of configs that a `kind` key selects. Each subclass declares `kind: Literal["name"]`."""

    kind: str

    @classmethod
    def registered_name(cls) -> str | None:
        """Return the `kind` that this class declares, or None if it declares none."""
        name = cls.model_fields["kind"].default if "kind" in get_annotations(cls) else None
        return name if isinstance(name, str) else None


C = TypeVar("C", bound=Config)
M = TypeVar("M", bound=BaseModel)


def with_fields(fields: Mapping[str, Any]) -> Callable[[type[M]], type[M]]:
    """Return a class decorator that adds `fields` to a pydantic model. `fields` maps each name to (annotation, default)."""

    def add(model: type[M]) -> type[M]:
        name, doc, module = model.__name__, model.__doc__, model.__module__
        return create_model(name, __base__=model, __doc__=doc, __module__=module, **fields)

    return add


P = ParamSpec("P")
R = TypeVar("R")


def check_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function` with arguments that are checked against their annotations. Raises ConfigError for an invalid argument."""
    checked = validate_call(function)

    @wraps(function)
    def call(*args: P.args, **keywords: P.kwargs) -> R:
        try:
            return checked(*args, **keywords)
        except ValidationError as error:
            if error.title != function.__name__:
                raise
            item = error.errors(include_url=False)[0]
            got = "" if item["type"].startswith("missing") else f" (got {item['input']!r})"
            what = f"argument '{item['loc'][0]}': {item['msg'].removeprefix('Value error, ')}{got}"
            raise ConfigError(what, where=function.__name__, remedy="Correct the argument.") from None

    return call


def one_of(base: type[KindConfig]) -> BeforeValidator:
    """Return a validator that parses a mapping as a subclass of `base`. The key `kind` of the mapping selects the subclass.

    Use the validator in the type of a field: `Annotated[SerializeAsAny[Base], one_of(Base)]`.
    """

    def choose(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        kind = value.get("kind")
        known = find_kinds(base, kind)
        if not isinstance(kind, str) or kind not in known:
            raise ValueError(f"unknown kind {kind!r}. {suggest_name(str(kind), known)}")
        return known[kind].model_validate(value)

    return BeforeValidator(choose)


def parse_config(cls: type[C], data: Any, *, where: str) -> C:
    """Parse `data` as the config class `cls`.

    Raises a ConfigError that names `where`, the invalid key and, if the key is unknown, the closest valid key.
    """
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise ConfigError("; ".join(_error_messages(cls, error)), where=where) from None


def _error_messages(cls: type[Config], error: ValidationError) -> Iterator[str]:
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"]) or "(whole)"
        if item["type"] == "extra_forbidden":
            fields = _fields_at(cls, item["loc"][:-1])
            yield f"unknown key '{key}'. {suggest_name(str(item['loc'][-1]), fields)}".strip()
        else:
            message = item["msg"].removeprefix("Value error, ")
            got = "" if isinstance(item.get("input"), Mapping | list) else f" (got {item.get('input')!r})"
            yield f"key '{key}': {message}{got}"


def _fields_at(cls: Any, path: Iterable[Any]) -> list[str]:
    for part in path:
        field = getattr(cls, "model_fields", {}).get(part)
        if field is None:
            return []
        cls = field.annotation
    return list(getattr(cls, "model_fields", {}))


def override_fields(config: C, assignments: Iterable[str], *, where: str = "command line") -> C:
    """Apply dotted assignments such as `optim.lr=3e-4` to a copy of `config`. The assigned values are YAML scalars or lists.

    `tune.kind=lora` replaces `tune` with a config of the kind `lora`. Fields that the old and the new config class inherit
    from a common base keep their values, and all other fields take their defaults. Assignments to a `kind` are applied before
    all other assignments.
    """
    data = config.model_dump(mode="python")
    pairs: list[tuple[str, Any]] = []
    for text in assignments:
        key, equals, raw = text.partition("=")
        if not equals:
            raise ConfigError(f"'{text}' is not key=value", where=where, remedy="Write key=value.")
        pairs.append((key.strip(), parse_scalar(raw)))
    for key, value in sorted(pairs, key=lambda pair: not pair[0].endswith(".kind")):
        *path, last = key.split(".")
        current = _value_at(config, path) if last == "kind" else None
        if isinstance(current, KindConfig) and value != current.kind:
            node = _value_at(data, path)
            replacement = _fields_of_kind(value, current, key, where)
            node.clear()
            node.update(replacement)
        else:
            _assign(data, key, value, where)
    return parse_config(type(config), _drop_unset(data), where=where)


class _Unset:
    """Placeholder for a required field that has no value after an assignment changed `kind`.

    `parse_config` reports the required field as missing unless another assignment sets the field.
    """


def _fields_of_kind(kind: Any, current: KindConfig, key: str, where: str) -> dict[str, Any]:
    """Return the fields of a config of the kind `kind`, which replaces `current`.

    Both configs have the same base class, the direct subclass of KindConfig. The fields of this base class keep their values
    from `current`, except `kind`. All other fields take their defaults, or `_Unset` if they have none.
    """
    base: type[KindConfig] = registry_base(type(current))
    known = find_kinds(base, kind)
    if not isinstance(kind, str) or kind not in known:
        raise ConfigError(f"key '{key}': unknown kind '{kind}'", where=where, remedy=suggest_name(str(kind), known))
    fields = {
        name: _Unset() if field.is_required() else field.get_default(call_default_factory=True)
        for name, field in known[kind].model_fields.items()
    }
    shared = {name: getattr(current, name) for name in base.model_fields if name != "kind"}
    plain = {name: v.model_dump() if isinstance(v, Config) else v for name, v in (fields | shared).items()}
    return plain | {"kind": kind}


def _value_at(node: Any, path: Iterable[str]) -> Any:
    """Return the value at `path` in a config or in a config's dump, or None if `path` does not exist."""
    for part in path:
        if isinstance(node, tuple | list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict):
            node = node.get(part)
        else:
            node = getattr(node, part, None) if isinstance(node, Config) else None
    return node


def _drop_unset(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _drop_unset(value) for key, value in data.items() if not isinstance(value, _Unset)}
    return [_drop_unset(value) for value in data] if isinstance(data, list | tuple) else data


def parse_scalar(raw: str) -> Any:
    """Parse the value of a `key=value` argument as YAML. Numbers such as `3e-4`, which PyYAML reads as strings, become
    floats.

    `on` and `off` stay strings, because `on` and `off` are values of `thinking`; YAML would read `on` and `off` as booleans.
    For boolean fields, pydantic converts `on` and `off` to booleans.
    """
    if raw.strip().lower() in ("on", "off"):
        return raw.strip()
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        return raw
    if isinstance(value, str):
        try:
            return float(value) if any(c.isdigit() for c in value) else value
        except ValueError:
            return value
    return value


def _assign(data: dict[str, Any], key: str, value: Any, where: str) -> None:
    *path, last = key.split(".")
    node: Any = data
    for depth, part in enumerate([*path, last]):
        if isinstance(node, list | tuple) and part.isdigit() and int(part) < len(node):
            node = node[int(part)] if depth < len(path) else node
            continue
        if not isinstance(node, dict) or part not in node:
            names = list(node) if isinstance(node, dict) else []
            raise ConfigError(f"unknown key '{key}'", where=where, remedy=suggest_name(part, names))
        if depth < len(path):
            if isinstance(node[part], tuple):
                node[part] = list(node[part])
            node = node[part]
    if isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(
            f"'{key}' is inside a list", where=where, remedy=f"Set the whole list: {'.'.join(path)}=[...]"
        )


def load_yaml(text: str) -> Any:
    """Parse YAML with PyYAML's C loader, or with the Python loader if the C loader is missing.

    PyYAML's C loader parses a `run.yaml` eight times as fast as the Python loader.
    """
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def read_yaml(cls: type[C], path: Path) -> C:
    """Parse the YAML file `path` as the config class `cls`.

    Raises a ConfigError that names the file if the file is missing, is not YAML, or does not fit `cls`.
    """
    try:
        data = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such file", where=str(path), remedy="Check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not YAML: {error}", where=str(path), remedy="Restore the file or repeat the run.") from None
    return parse_config(cls, data, where=str(path))


def to_yaml(config: Config, exclude: set[str] | None = None) -> str:
    """Serialise `config` as YAML, without the keys `exclude`. `read_yaml` parses the YAML back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude=exclude), sort_keys=False, allow_unicode=True)
