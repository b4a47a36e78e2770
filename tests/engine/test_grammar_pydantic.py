"""Ordinary pydantic models as grammars: none is refused, and what ends validates with jsonschema and pydantic, or is an error."""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import json
import uuid
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import jsonschema
import numpy as np
import pydantic
import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.grammar.check import MISMATCH
from rorqual.engine.grammar.compiler import Grammars
from rorqual.engine.request import Grammar

EOS = 1
T = TypeVar("T")
Short = Annotated[str, Field(max_length=6)]
Small = Annotated[int, Field(ge=0, le=9)]


class Colour(enum.Enum):
    RED, GREEN, ODD = "red", "green", 'say "hi"\n'


class Level(enum.IntEnum):
    LOW, HIGH = 1, 10


class Forbid(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Cat(Forbid):
    kind: Literal["cat"]
    lives: Small


class Dog(Forbid):
    kind: Literal["dog"]
    good: bool = True


class Tree(Forbid):
    value: Small
    left: Tree | None = None
    right: Tree | None = None


class Folder(Forbid):
    name: Short
    below: Annotated[list[Folder], Field(max_length=2)] = []


class Even(Forbid):
    odd: Odd | None = None


class Odd(Forbid):
    even: Even | None = Field(default=None, description="the other", title="Even one")


class Page(Forbid, Generic[T]):
    items: Annotated[list[T], Field(max_length=2)]
    total: Annotated[int, Field(ge=0, lt=100)]


class Point(NamedTuple):
    x: int
    y: Annotated[float, Field(ge=-1, le=1)]


class Movie(TypedDict):
    name: Short
    year: Annotated[int, Field(gt=1900, lt=2100)]


class Aliased(Forbid):
    first: Short = Field(alias="firstName", description="A name", examples=["Ann"])
    last: Short | None = Field(default=None, serialization_alias="lastName", validation_alias="last-name")


class Everything(Forbid):
    when: dt.datetime
    colour: Colour = Colour.RED
    tags: Annotated[set[Short], Field(max_length=2)] = set()
    prices: Annotated[dict[Literal["eur", "usd"], Annotated[float, Field(gt=0, lt=0.5)]], Field(max_length=2)]
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Open(BaseModel):
    a: int


class Secret(Forbid):
    user: Short
    password: Annotated[pydantic.SecretStr, Field(max_length=8)]


class Blob(Forbid):
    data: bytes = b""
    where: Path


class Either(pydantic.RootModel[list[int] | Short]):
    pass


MODELS: dict[str, Any] = {
    "str": Short, "int": Annotated[int, Field(ge=-5, le=500)], "float": Annotated[float, Field(ge=0, le=1)], "bool": bool, "None": None,
    "bytes": bytes, "a field of bytes": Blob, "Path": Path,
    "SecretStr": pydantic.SecretStr, "SecretBytes": pydantic.SecretBytes, "date": dt.date, "time": dt.time, "datetime": dt.datetime,
    "AwareDatetime": pydantic.AwareDatetime, "timedelta": dt.timedelta, "UUID": uuid.UUID, "UUID1": pydantic.UUID1,
    "UUID4": pydantic.UUID4, "UUID7": pydantic.UUID7, "Decimal": Annotated[Decimal, Field(ge=0, le=10)],
    "IPv4Address": ipaddress.IPv4Address, "IPv6Address": ipaddress.IPv6Address, "IPv4Network": ipaddress.IPv4Network,
    "IPv6Network": ipaddress.IPv6Network, "IPv4Interface": ipaddress.IPv4Interface, "IPv6Interface": ipaddress.IPv6Interface,
    "IPvAnyAddress": pydantic.IPvAnyAddress, "IPvAnyNetwork": pydantic.IPvAnyNetwork, "Base64Bytes": pydantic.Base64Bytes,
    "Base64UrlStr": pydantic.Base64UrlStr, "list": Annotated[list[Small], Field(min_length=1, max_length=3)],
    "tuple": tuple[Small, Short, bool], "tuple of any length": Annotated[tuple[Small, ...], Field(max_length=3)],
    "set": Annotated[set[Small], Field(max_length=3)], "frozenset": Annotated[frozenset[Short], Field(min_length=1, max_length=3)],
    "set of Literal": set[Literal["a", "b", "c"]], "set of Enum": Annotated[set[Colour], Field(min_length=2)],
    "set of bool": frozenset[bool], "deque": Annotated[deque[Small], Field(max_length=3)],
    "Sequence": Annotated[Sequence[bool], Field(max_length=3)], "dict": Annotated[dict[Short, Small], Field(max_length=2)],
    "dict of Literal": dict[Literal["a", "b"], Small], "dict of Enum": dict[Colour, Small],
    "dict of UUID": Annotated[dict[uuid.UUID, bool], Field(max_length=2)], "dict of date": Annotated[dict[dt.date, bool], Field(max_length=2)],
    "dict of a pattern": dict[Annotated[str, Field(pattern="^x_[a-z]{1,3}$")], Small],
    "dict of bounded names": Annotated[dict[Annotated[str, Field(min_length=2, max_length=4)], bool], Field(min_length=1, max_length=2)],
    "Mapping": Annotated[Mapping[Literal["k"], Short], Field(min_length=1)], "Literal": Literal["a", 1, None, True],
    "Enum": Colour, "IntEnum": Level, "conint": pydantic.conint(gt=0, lt=100, multiple_of=7),
    "confloat": pydantic.confloat(gt=0, lt=0.5), "confloat below 0": pydantic.confloat(ge=-0.5, lt=0),
    "multiple of 0.25": pydantic.confloat(ge=0, le=2, multiple_of=0.25), "constr": pydantic.constr(min_length=2, max_length=4),
    "PositiveInt": pydantic.PositiveInt, "NegativeFloat": pydantic.NegativeFloat, "NonNegativeInt": pydantic.NonNegativeInt,
    "bound of many digits": Annotated[float, Field(ge=92.19050918627971, le=93)], "int64": Annotated[int, Field(ge=0, lt=2**64)],
    "Optional": Short | None, "union": Small | Short | None, "an impossible branch": Annotated[int, Field(gt=1, lt=2)] | None,
    "discriminated union": Annotated[Cat | Dog, Field(discriminator="kind")], "recursive": Tree, "recursive list": Folder,
    "mutually recursive": Even, "generic": Page[Cat], "nested generic": Page[Page[bool]], "NamedTuple": Point, "TypedDict": Movie,
    "aliases": Aliased, "many fields": Everything, "secrets": Secret, "RootModel": Either,
    "list of unions": Annotated[list[Cat | Small], Field(max_length=2)], "Any": Annotated[Any, Field(title="anything")],
    "StrictInt": pydantic.StrictInt, "ByteSize": Annotated[int, pydantic.Field(ge=0)], "json object": Counter[Short] | None,
}  # fmt: skip
SAYS_LESS = (
    "Decimal", "Base64UrlStr", "Base64Bytes", "dict of a pattern", "timedelta", "UUID1", "UUID4", "UUID7", "IPv4Network", "IPv6Network",
    "IPv4Interface", "IPv6Interface", "IPvAnyAddress", "IPvAnyNetwork",
)  # fmt: skip
"""Models of which pydantic's own schema allows more than they take: a Decimal is any text, a `format` of pydantic is not one of JSON Schema."""
CHECKED = (
    "set", "set of Enum", "set of Literal", "set of bool", "frozenset", "many fields", "dict", "dict of Literal", "dict of Enum", "Mapping",
    "json object", "dict of UUID", "dict of date", "dict of bounded names", "time", "confloat", "confloat below 0",
)  # fmt: skip
"""Models with a keyword that llguidance does not enforce, so that a random reply rarely matches it."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.byte_level()


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, tokenizer.vocab_size, [EOS])


def drawn(grammars: Grammars, tokenizer: Tokenizer, schema: Any, seed: int, limit: int = 400) -> tuple[str, str]:
    """A reply drawn at random, ever more willing to close, and its error; empty where it is cut off."""
    constraint, rng, reply = (
        grammars.compile(Grammar("json_schema", json.dumps(schema))).start(),
        np.random.default_rng(seed),
        list[int](),
    )
    closing = [EOS, *(tokenizer.encode(mark)[0] for mark in '"]}n')]
    while len(reply) < limit and not constraint.done:
        mask = constraint.mask()
        assert mask is not None and (constraint.done or not constraint.error), (
            constraint.error,
            tokenizer.decode(reply),
        )
        weight = mask.astype(np.float64)
        weight[closing] *= 4 + len(reply)
        weight[tokenizer.encode(" \n")] *= 0.01
        token = int(rng.choice(len(mask), p=weight / weight.sum()))
        constraint.accept(token)
        reply += [] if token == EOS else [token]
    return (tokenizer.decode(reply), constraint.error) if constraint.done else ("", "")


@pytest.mark.parametrize("name", MODELS)
def test_what_ends_validates(name: str, grammars: Grammars, tokenizer: Tokenizer) -> None:
    adapter = TypeAdapter(MODELS[name])
    schema = adapter.json_schema()
    ended, unmatched = 0, 0
    for seed in range(12):
        text, error = drawn(grammars, tokenizer, schema, seed)
        if error:
            assert error.startswith(MISMATCH) and name in CHECKED, error
            unmatched += 1
        elif text:
            ended += 1
            jsonschema.Draft202012Validator(schema).validate(json.loads(text))
            if name not in SAYS_LESS:
                adapter.validate_json(text)
    assert ended + unmatched >= 8
