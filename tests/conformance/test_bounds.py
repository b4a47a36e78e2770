"""Every number that may be set has bounds: what no run can mean is refused by its key, and never met by a traceback later."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
from pydantic import TypeAdapter, ValidationError

import rorqual
from rorqual.core.config import Config
from rorqual.core.errors import RorqualError
from rorqual.core.records import RunDir
from rorqual.recipes import make_run
from rorqual.recipes.find import RECIPES
from rorqual.train.loop import fit
from rorqual.train.run import Run

RESULTS = (
    "rorqual.evals.",
    "rorqual.lab.finding",
    "rorqual.lab.job",
    "rorqual.recipes.quickstart.findings",
    "rorqual.report.",
    "rorqual.model.adapter.files",
    "rorqual.teach.promise",
)
"""Records of what was measured: not settings."""
ELSEWHERE = ("rorqual.cli.planning", "rorqual.generate.schema", "rorqual.cli.benching")
"""Amounts such as 14.8T, requests to the engine, and lists have bounds in their own types, with tests beside them."""
NUMBERS = [math.nan, math.inf, -math.inf, -1, -1e300, -(10**38), 10**38, 1e300]
OTHERS: list[Any] = ["word", "", [], {}, [1], {"a": 1}, True, None]


def settings() -> Iterator[type[Config]]:
    for module in pkgutil.walk_packages(rorqual.__path__, "rorqual."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    open_, seen = [Config], set[type[Config]]()
    while open_:
        for kind in open_.pop().__subclasses__():
            open_.append(kind)
            if (
                kind not in seen
                and kind.__module__.startswith("rorqual.")
                and not kind.__module__.startswith((*RESULTS, *ELSEWHERE))
            ):
                seen.add(kind)
                yield kind


def numeric(kind: Any) -> bool:
    return kind in (int, float) or (get_origin(kind) is not dict and any(numeric(part) for part in get_args(kind)))


def fields() -> dict[str, Any]:
    """Name -> type, with its bounds, of every number that may be set: fields of configs, and arguments of recipes."""
    found = {}
    for cls in settings():
        for name, field in cls.model_fields.items():
            if numeric(field.annotation):
                kind = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
                found[f"{cls.__module__}.{cls.__name__}.{name}"] = kind
    for recipe, function in RECIPES.items():
        for name, hint in get_type_hints(function, include_extras=True).items():
            if name != "return" and numeric(hint):
                found[f"{recipe} {name}"] = hint
    return found


def shaped(kind: Any, value: Any) -> Any:
    """The value where a number stands: a tuple of pairs takes pairs of it."""
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if get_origin(plain) in (Union, UnionType):
        return shaped(next(part for part in get_args(plain) if part is not NoneType), value)
    if get_origin(plain) is tuple:
        return tuple(shaped(part, value) for part in get_args(plain) if part is not Ellipsis)
    return value


def test_every_number_that_may_be_set_has_bounds() -> None:
    loose, kinds = [], fields()
    assert len(kinds) > 150
    for name, kind in kinds.items():
        optional = NoneType in get_args(kind)
        for value in (*NUMBERS, *OTHERS):
            if (value is None and optional) or (value is True and name.startswith("rorqual.cli.")):
                continue
            try:
                TypeAdapter(kind).validate_python(shaped(kind, value))
            except ValidationError:
                continue
            loose.append(f"{name} takes {value!r}")
    assert not loose, "\n".join(loose)


def leaves(config: Any, path: str = "") -> Iterator[str]:
    """The dotted name of every setting of a run."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from leaves(value, f"{path}{name}.")
        elif isinstance(value, tuple) and value and isinstance(value[0], Config):
            for number, one in enumerate(value):
                yield from leaves(one, f"{path}{name}.{number}.")
        else:
            yield f"{path}{name}"


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, beside a text."""
    place = tmp_path_factory.mktemp("place")
    (place / "text.txt").write_text("a text\n" * 99, "utf-8")
    fit(
        make_run("sft", {"task": "families", "size": "tiny", "steps": "1", "rows": "1"}),
        RunDir(place / "run"),
        quiet=True,
    )
    return place / "run"


NEEDED = {"data": "text.txt", "task": "families", "from": "run", "start": "run", "teacher": "run"}
WORDS = [
    "null",
    "-1",
    "0",
    "nan",
    ".inf",
    "-.inf",
    "1e300",
    "1e-300",
    str(10**38),
    "[]",
    "{}",
    "{a: 1}",
    "yes",
    "word",
    "",
]


def test_a_bad_word_at_any_key_is_refused_by_a_message(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user may type at each key of a recipe: a run, or an error that can be mended, and nothing else. A key that several recipes
    have gets all words once."""
    monkeypatch.chdir(tiny_run.parent)
    known = set[str]()
    for recipe, function in RECIPES.items():
        takes = inspect.signature(function).parameters
        given = {name: NEEDED[name] for name, p in takes.items() if p.default is inspect.Parameter.empty}
        given |= {"task": "families"} if recipe == "sft" else {}
        for key in dict.fromkeys((*takes, *leaves(make_run(recipe, given)))):
            for word in WORDS[::4] if key in known else WORDS:
                try:
                    made = make_run(recipe, given | {key: word})
                except RorqualError as error:
                    assert error.where and (error.remedy or "key" in error.what), f"{recipe} {key}={word}: {error}"
                else:
                    assert isinstance(made, Run)
            known |= {key} - {*takes}
