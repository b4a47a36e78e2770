"""Configuration: frozen pydantic models, strict parsing, dotted overrides, and YAML that round-trips.

Each component owns its config; a parent does not repeat a child's fields. Some fields hold one of several kinds, such as an
attention, a feed-forward network or an objective. Declare such a field with `one_of(Base)`, which selects the subclass by
`kind`. A new kind needs one file and no registry entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from inspect import get_annotations
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from rorqual.core.errors import ConfigError, nearest


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):  # Python's bool is an int, so `steps=yes` would pass as 1
        raise ValueError("a boolean, not a number")
    return value


MOST, LARGEST = 2**31 - 1, 1e37
"""Upper bounds of all numbers: the largest 32-bit index, and a value that float32 can hold."""
_NUMBER = BeforeValidator(_no_truth_value)
Count = Annotated[int, _NUMBER, Field(ge=1, le=MOST)]
Natural = Annotated[int, _NUMBER, Field(ge=0, le=MOST)]
Rows = Annotated[int, _NUMBER, Field(ge=1, le=2**16)]
"""Number of rows in a batch."""
RowLength = Annotated[int, _NUMBER, Field(ge=8, le=2**22)]
"""Number of tokens in a row."""
Seed = Annotated[int, _NUMBER, Field(ge=0, lt=2**63)]
Bytes = Annotated[int, _NUMBER, Field(ge=0, lt=2**63)]
Positive = Annotated[float, _NUMBER, Field(gt=0, le=LARGEST, allow_inf_nan=False)]
NonNegative = Annotated[float, _NUMBER, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
Share = Annotated[float, _NUMBER, Field(ge=0, le=1, allow_inf_nan=False)]
Part = Annotated[float, _NUMBER, Field(gt=0, le=1, allow_inf_nan=False)]
"""A share above zero."""
Momentum = Annotated[float, _NUMBER, Field(ge=0, lt=1, allow_inf_nan=False)]
Temperature = Annotated[float, _NUMBER, Field(ge=1e-3, le=1e3, allow_inf_nan=False)]
"""A temperature that divides logits or log-probabilities; it cannot be 0."""


class Config(BaseModel):
    """Base class of all configurations: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, validate_default=True)


class Kind(Config):
    """Base class of configs that exist in several kinds. Each subclass declares `kind: Literal["name"]`."""

    kind: str


C = TypeVar("C", bound=Config)
M = TypeVar("M", bound=BaseModel)


def with_fields(fields: Mapping[str, Any]) -> Callable[[type[M]], type[M]]:
    """Return a class decorator that adds fields to a model, given as name -> (annotation, default)."""

    def add(model: type[M]) -> type[M]:
        name, doc, module = model.__name__, model.__doc__, model.__module__
        return create_model(name, __base__=model, __doc__=doc, __module__=module, **fields)

    return add


def kinds(base: type[Kind]) -> dict[str, type[Kind]]:
    """Return all kinds below `base`, by name. A kind is registered when its module is imported.

    A class has a name if it declares `kind` itself. Raises ConfigError if two classes have one name. If a class was defined
    again, as in a notebook, the newest counts.
    """
    found: dict[str, type[Kind]] = {}
    classes: list[type[Kind]] = [base]
    while classes:
        classes += (sub := classes.pop(0)).__subclasses__()
        name = sub.model_fields["kind"].default
        if not isinstance(name, str) or "kind" not in get_annotations(sub):
            continue
        other = found.get(name, sub)
        if (sub.__module__, sub.__qualname__) != (other.__module__, other.__qualname__):
            both = " and ".join(f"{cls.__module__}.{cls.__qualname__}" for cls in (other, sub))
            raise ConfigError(f"two kinds are called '{name}': {both}", where=base.__name__, remedy="Rename one.")
        found[name] = sub
    return found


@cache
def import_plugins() -> None:
    """Import the modules that installed packages name in the entry point group `rorqual.plugins`, once."""
    for entry in entry_points(group="rorqual.plugins"):
        entry.load()


def one_of(base: type[Kind]) -> BeforeValidator:
    """Return a validator for a field that holds any kind below `base`, selected by `kind`.

    Declare the field as `Annotated[SerializeAsAny[Base], one_of(Base)]`.
    """

    def choose(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        known = kinds(base)
        kind = value.get("kind")
        if kind not in known:
            import_plugins()
            known = kinds(base)
        if not isinstance(kind, str) or kind not in known:
            raise ValueError(f"unknown kind {kind!r}. {nearest(str(kind), known)}")
        return known[kind].model_validate(value)

    return BeforeValidator(choose)


def parse(cls: type[C], data: Any, *, where: str) -> C:
    """Validate `data` as `cls`.

    Raises ConfigError that names `where`, the key, and the closest valid key.
    """
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(cls, error)), where=where) from None


def _explain(cls: type[Config], error: ValidationError) -> Iterator[str]:
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"]) or "(whole)"
        if item["type"] == "extra_forbidden":
            fields = _fields_at(cls, item["loc"][:-1])
            yield f"unknown key '{key}'. {nearest(str(item['loc'][-1]), fields)}".strip()
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


def override(config: C, assignments: Iterable[str], *, where: str = "command line") -> C:
    """Return `config` with dotted `key=value` assignments applied, such as `optim.lr=3e-4`. Values are YAML scalars or lists.

    `tune.kind=lora` replaces the kind of that field. Fields of the common base class keep their values; all others start at
    the new kind's defaults. Kinds are set first, whatever the order of the assignments.
    """
    data = config.model_dump(mode="python")
    pairs: list[tuple[str, Any]] = []
    for text in assignments:
        key, equals, raw = text.partition("=")
        if not equals:
            raise ConfigError(f"'{text}' is not key=value", where=where, remedy="Write it as key=value.")
        pairs.append((key.strip(), scalar(raw)))
    for key, value in sorted(pairs, key=lambda pair: not pair[0].endswith(".kind")):
        *path, last = key.split(".")
        held = _at(config, path) if last == "kind" else None
        if isinstance(held, Kind) and value != held.kind:
            other, place = _of_another_kind(held, value, key, where), _at(data, path)
            place.clear()
            place.update(other)
        else:
            _assign(data, key, value, where)
    return parse(type(config), _given(data), where=where)


class _Unset:
    """Marks a field of a new kind that has no default. It must be assigned, or it is reported as missing."""


def _of_another_kind(held: Kind, kind: Any, key: str, where: str) -> dict[str, Any]:
    """Return the fields of the kind named `kind`, a sibling of `held`. Fields of their common base keep the values of `held`."""
    base: type[Kind] = next(cls for cls in type(held).__mro__ if issubclass(cls, Kind) and Kind in cls.__bases__)
    known = kinds(base)
    if not isinstance(kind, str) or kind not in known:
        raise ConfigError(f"key '{key}': unknown kind '{kind}'", where=where, remedy=nearest(str(kind), known))
    fields = {
        name: _Unset() if field.is_required() else field.get_default(call_default_factory=True)
        for name, field in known[kind].model_fields.items()
    }
    kept = {name: getattr(held, name) for name in base.model_fields if name != "kind"}
    plain = {name: v.model_dump() if isinstance(v, Config) else v for name, v in (fields | kept).items()}
    return plain | {"kind": kind}


def _at(node: Any, path: Iterable[str]) -> Any:
    """Return the value at a dotted path of a config or of its dump, or None if the path does not exist."""
    for part in path:
        if isinstance(node, tuple | list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict):
            node = node.get(part)
        else:
            node = getattr(node, part, None) if isinstance(node, Config) else None
    return node


def _given(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _given(value) for key, value in data.items() if not isinstance(value, _Unset)}
    return [_given(value) for value in data] if isinstance(data, list | tuple) else data


def scalar(raw: str) -> Any:
    """Parse the value of a `key=value` argument as YAML, plus numbers such as `3e-4` that YAML reads as text.

    `on` and `off` stay strings, although YAML reads them as booleans: they are values of `thinking`. Pydantic still reads
    them as booleans for boolean fields.
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
            raise ConfigError(f"unknown key '{key}'", where=where, remedy=nearest(part, names))
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
    """Parse YAML with libyaml if PyYAML was built with it: eight times as fast on a run.yaml as PyYAML's own loader."""
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def read_yaml(cls: type[C], path: Path) -> C:
    """Read the YAML file `path` as `cls`.

    Raises ConfigError that names the file if it is missing, is not YAML, or has an unknown key.
    """
    try:
        data = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such file", where=str(path), remedy="Check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not YAML: {error}", where=str(path), remedy="Restore the file or repeat the run.") from None
    return parse(cls, data, where=str(path))


def to_yaml(config: Config) -> str:
    """Return `config` as YAML. `read_yaml` reads it back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
