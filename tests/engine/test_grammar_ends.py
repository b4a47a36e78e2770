"""Schemas that need themselves: what has no finite value is refused, what has one is taken, and llguidance agrees on both."""

from __future__ import annotations

import json
import random
import re
import time
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from rorqual.core.errors import DataError
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.grammar import source as grammar_source
from rorqual.engine.grammar.compiler import Compiled, Grammars
from rorqual.engine.grammar.source import parse_schema, rewrite
from rorqual.engine.request import Grammar

NULL = {"type": "null"}
EOS = 1


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.byte_level()


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, tokenizer.vocab_size, [EOS])


def ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


def has(**properties: Any) -> dict[str, Any]:
    """An object that must have all of these, and nothing else."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def ring(**defs: Any) -> dict[str, Any]:
    return {**ref("a"), "$defs": defs}


LINK = has(x=ref("b"))
POISONS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a needs b needs a": (ring(a=LINK, b=has(y=ref("a"))), ring(a=LINK, b=has(y=ref("a")) | {"required": []}), "required"),
    "a list with an end": (
        ring(a=LINK, b=has(y={"type": "array", "items": ref("a"), "minItems": 1})),
        ring(a=LINK, b=has(y={"type": "array", "items": ref("a")})),
        "required",
    ),
    "a list of two that are listed": (
        ring(a=LINK, b={"type": "array", "prefixItems": [NULL, ref("a")], "minItems": 2}),
        ring(a=LINK, b={"type": "array", "prefixItems": [NULL, ref("a")], "minItems": 1}),
        "required",
    ),
    "a choice with an end": (
        ring(a=LINK, b=has(y={"anyOf": [ref("a"), ref("b")]})),
        ring(a=LINK, b=has(y={"anyOf": [ref("a"), NULL]})),
        "required",
    ),
    "a choice of one with an end": (
        ring(a=LINK, b=has(y={"oneOf": [has(z=ref("a")), {"type": "array", "items": ref("a"), "minItems": 1}]})),
        ring(a=LINK, b=has(y={"oneOf": [has(z=ref("a")), {"type": "array", "items": NULL, "minItems": 1, "maxItems": 1}]})),
        "required",
    ),
    "another type": (ring(a=LINK, b=has(y=ref("a"))), ring(a=LINK, b=has(y=ref("a")) | {"type": ["object", "null"]}), "required"),
    "no type": (
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        "required",
    ),
    "a name that is not listed": (
        {"type": "object", "required": ["a"], "additionalProperties": {"$ref": "#"}},
        {"type": "object", "required": ["a"], "properties": {"a": NULL}, "additionalProperties": {"$ref": "#"}},
        "required",
    ),
    "a number of names": (
        {"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#"}},
        {"type": "object", "minProperties": 0, "additionalProperties": {"$ref": "#"}},
        "minProperties",
    ),
    "a list of itself": (
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 0},
        "minItems",
    ),
    "a type that is said elsewhere": (
        {"allOf": [{"type": "object"}, {"properties": {"a": {"$ref": "#"}}, "required": ["a"]}]},
        {"allOf": [{"type": ["object", "null"]}, {"properties": {"a": {"$ref": "#"}}, "required": ["a"]}]},
        "$ref",
    ),
    "a value": (
        has(k={"const": 1}, z={"$ref": "#"}),
        has(k={"const": 1}, z={"$ref": "#/properties/k"}),
        "required",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", POISONS)
def test_a_ring_without_an_end_is_refused_by_its_keyword_and_its_twin_ends(
    name: str, grammars: Grammars, tokenizer: Tokenizer
) -> None:
    poison, twin, keyword = POISONS[name]
    with pytest.raises(DataError, match=f"'{re.escape(keyword)}' at #.* endlessly") as caught:
        grammars.compile(Grammar("json_schema", json.dumps(poison)))
    assert caught.value.remedy
    compiled = grammars.compile(Grammar("json_schema", json.dumps(twin)))
    assert any(ends(compiled, tokenizer, seed) for seed in range(20))


RING = {"a": has(x=ref("a"))}
SPARED: dict[str, dict[str, Any]] = {
    "a choice beside it": {"anyOf": [ref("a"), NULL], "$defs": RING},
    "a property that may be left out": {"type": "object", "properties": {"p": ref("a")}, "$defs": RING, "additionalProperties": False},
    "a list that may be empty": {"type": "array", "items": ref("a"), "$defs": RING},
    "a list with a first item": {"type": "array", "prefixItems": [NULL], "items": ref("a"), "minItems": 1, "$defs": RING},
    "another type": {"type": ["null", "object"], "properties": {"p": ref("a")}, "required": ["p"], "$defs": RING},
    "a choice of one kind beside it": {"oneOf": [ref("a"), NULL], "$defs": RING},
}  # fmt: skip


@pytest.mark.parametrize("name", SPARED)
def test_a_ring_that_nothing_needs_is_left_out(name: str, grammars: Grammars, tokenizer: Tokenizer) -> None:
    compiled = None
    with suppress(DataError):
        compiled = grammars.compile(Grammar("json_schema", json.dumps(SPARED[name])))
    assert compiled is not None and all(ends(compiled, tokenizer, seed) for seed in range(8))


def ends(compiled: Compiled, tokenizer: Tokenizer, seed: int) -> bool:
    """Whether a reply drawn at random, and ever more willing to close, ends."""
    rng, constraint = np.random.default_rng(seed), compiled.start()
    closing = [EOS, *(tokenizer.encode(mark)[0] for mark in '"]}n')]
    for drawn in range(250):
        mask = constraint.mask()
        assert mask is not None and not constraint.error
        weight = mask.astype(np.float64)
        weight[closing] *= 1 + drawn
        weight[tokenizer.encode(" \n")] *= 0.01
        constraint.accept(int(rng.choice(len(mask), p=weight / weight.sum())))
        if constraint.done:
            return True
    return False


def part(rng: random.Random) -> dict[str, Any]:
    to = ref(rng.choice("abc"))
    items = {"type": "array", "items": to, "minItems": rng.randrange(2), "maxItems": 1}
    return rng.choice([to, to, NULL, {"anyOf": [to, ref(rng.choice("abc"))]}, {"anyOf": [to, NULL]}, items])


def test_rings_drawn_at_random_never_end_where_they_are_refused_and_do_where_they_are_not(
    grammars: Grammars, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, refused, taken = random.Random(0), 0, 0
    for _ in range(70):
        schema = ring(
            **{name: has(x=part(rng)) if rng.random() < 0.6 else has(x=part(rng), y=part(rng)) for name in "abc"}
        )
        found = grammar_source.find_endless(schema, grammar_source.resolve)
        if not found:
            taken += 1
            compiled = grammars.compile(Grammar("json_schema", json.dumps(schema)))
            assert any(ends(compiled, tokenizer, seed) for seed in range(30)), schema
            continue
        refused += 1
        with monkeypatch.context() as patched:
            patched.setattr(grammar_source, "find_endless", lambda *_: [])
            try:
                compiled = grammars.compile(Grammar("json_schema", json.dumps({**schema, "$ref": found[0][1]})))
            except DataError as error:
                assert "'$ref'" in error.what or "no reply" in error.what
                continue
        assert not any(ends(compiled, tokenizer, seed) for seed in range(4)), (schema, found)
    assert refused > 15
    assert taken > 15


def test_thousands_of_references_are_looked_through_in_time() -> None:
    names = {f"p{number}": {"$ref": f"#/$defs/p{number % 250}"} for number in range(1500)}
    links = {f"p{number}": has(x=ref(f"p{number + 1}")) for number in range(249)} | {"p249": NULL}
    began = time.thread_time()
    rewrite(parse_schema(json.dumps(has(**names) | {"$defs": links})))
    assert time.thread_time() - began < 5
    with pytest.raises(DataError, match="endlessly"):
        rewrite(parse_schema(json.dumps(has(**names) | {"$defs": links | {"p249": has(x=ref("p0"))}})))
