"""Ordinary pydantic models as grammars: none is refused, and what ends validates with jsonschema and pydantic, or is an error."""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import json
import uuid
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, TypeVar

import jsonschema
import pydantic
import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from test_grammar import EOS, PAD, sampled

from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.grammar.check import MISMATCH
from rorqual.engine.grammar.compiler import Grammars
from rorqual.engine.request import Grammar

T = TypeVar("T")
Short = Annotated[str, Field(max_length=6)]
Small = Annotated[int, Field(ge=0, le=9)]


class Colour(enum.Enum):
    RED, GREEN, ODD = "red", "green", 'say "hi"\n'


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


class Page(Forbid, Generic[T]):
    items: Annotated[list[T], Field(max_length=2)]
    total: Annotated[int, Field(ge=0, lt=100)]


class Aliased(Forbid):
    first: Short = Field(alias="firstName", description="A name", examples=["Ann"])


class Everything(Forbid):
    when: dt.datetime
    colour: Colour = Colour.RED
    tags: Annotated[set[Short], Field(max_length=2)] = set()
    prices: Annotated[dict[Literal["eur", "usd"], Annotated[float, Field(gt=0, lt=0.5)]], Field(max_length=2)]
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


MODELS: dict[str, Any] = {
    "str": Short, "int": Annotated[int, Field(ge=-5, le=500)], "float": Annotated[float, Field(ge=0, le=1)], "bool": bool, "None": None,
    "bytes": bytes, "SecretStr": pydantic.SecretStr, "date": dt.date, "time": dt.time, "datetime": dt.datetime, "timedelta": dt.timedelta,
    "UUID": uuid.UUID, "Decimal": Annotated[Decimal, Field(ge=0, le=10)], "IPv6Address": ipaddress.IPv6Address,
    "IPv4Network": ipaddress.IPv4Network, "list": Annotated[list[Small], Field(min_length=1, max_length=3)],
    "tuple": tuple[Small, Short, bool], "set": Annotated[set[Small], Field(max_length=3)],
    "set of Enum": Annotated[set[Colour], Field(min_length=2)], "dict": Annotated[dict[Short, Small], Field(max_length=2)],
    "dict of a pattern": dict[Annotated[str, Field(pattern="^x_[a-z]{1,3}$")], Small],
    "Mapping": Annotated[Mapping[Literal["k"], Short], Field(min_length=1)], "Literal": Literal["a", 1, None, True],
    "conint": pydantic.conint(gt=0, lt=100, multiple_of=7), "confloat below 0": pydantic.confloat(ge=-0.5, lt=0),
    "multiple of 0.25": pydantic.confloat(ge=0, le=2, multiple_of=0.25), 
    "bound of many digits": Annotated[float, Field(ge=92.19050918627971, le=93)],
    "int64": Annotated[int, Field(ge=0, lt=2**64)], "union": Small | Short | None, 
    "an impossible branch": Annotated[int, Field(gt=1, lt=2)] | None,
    "discriminated union": Annotated[Cat | Dog, Field(discriminator="kind")], "recursive": Tree, "nested generic": Page[Page[bool]],
    "aliases": Aliased, "many fields": Everything, "Any": Annotated[Any, Field(title="anything")], "json object": Counter[Short] | None,
}  # fmt: skip
SAYS_LESS = ("Decimal", "dict of a pattern", "timedelta", "IPv4Network")
"""Models of which pydantic's own schema allows more than they take: a Decimal is any text, a `format` of pydantic is not one of JSON Schema."""
CHECKED = ("set", "set of Enum", "many fields", "dict", "Mapping", "json object", "time", "confloat below 0")
"""Models with a keyword that llguidance does not enforce, so that a random reply rarely matches it."""


@pytest.mark.parametrize("name", MODELS)
def test_what_ends_validates(name: str) -> None:
    adapter, tokenizer = TypeAdapter(MODELS[name]), Tokenizer.byte_level()
    schema = adapter.json_schema()
    compiled = Grammars(tokenizer, tokenizer.vocab_size, [EOS, PAD]).compile(Grammar("json_schema", json.dumps(schema)))
    ended, unmatched = 0, 0
    for seed in range(12):
        constraint = compiled.start()
        reply, whole = sampled(constraint, tokenizer, seed, 400)
        if constraint.error:
            assert constraint.error.startswith(MISMATCH) and name in CHECKED, constraint.error
            unmatched += 1
        elif whole:
            ended += 1
            jsonschema.Draft202012Validator(schema).validate(json.loads(tokenizer.decode(reply)))
            if name not in SAYS_LESS:
                adapter.validate_json(tokenizer.decode(reply))
    assert ended + unmatched >= 8
