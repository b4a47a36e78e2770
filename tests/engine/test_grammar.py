"""Grammars: what ends matches, what cannot be enforced is refused by name, and nothing that users send holds the engine up."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any

import hypothesis.strategies as st
import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as run_with

from rorqual.core.errors import ConfigError, DataError
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.grammar import trial_process
from rorqual.engine.grammar.compiler import (
    CompiledGrammar,
    Constraint,
    ConstraintAfterThinking,
    GrammarCompiler,
    ReasoningFormat,
)
from rorqual.engine.grammar.constraint import Bools
from rorqual.engine.grammar.source import MAX_BYTES, MAX_CHOICES, MAX_PATTERN
from rorqual.engine.grammar.trial_process import MISMATCH
from rorqual.engine.request import Grammar

EOS, PAD = 1, 2
WORDS = [
    '{"name": "value", "list": [1, 2, 3]}',
    "the quick brown fox",
    "<think>so it is</think>",
    "true false null",
] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.byte_level(WORDS, vocab_size=320)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> GrammarCompiler:
    """Over a vocabulary with rows that no token has, as embeddings are padded."""
    return GrammarCompiler(tokenizer, tokenizer.vocab_size + 9, [EOS, PAD])


def schema(**keys: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(keys))


def chain(links: int, by: str = "") -> Grammar:
    """A schema of references, each to the next (what is under `by` in it), and the last to null."""
    defs: dict[str, Any] = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(links)}
    defs = {name: {by: part} for name, part in defs.items()} if by else defs
    return schema(**{"$ref": "#/$defs/a0", "$defs": defs | {f"a{links}": {"type": "null"}}})


def mask_of(constraint: Constraint) -> Bools:
    """The mask of a constraint that has one."""
    mask = constraint.mask()
    assert mask is not None
    return mask


def sampled(constraint: Constraint, tokenizer: Tokenizer, seed: int, limit: int = 300) -> tuple[list[int], bool]:
    """Ids drawn at random, stop ids and closing ones more often, until the reply ends (True) or is `limit` long."""
    rng, reply = np.random.default_rng(seed), list[int]()
    closing = np.array([tokenizer.encode(mark)[0] for mark in '"]},'] + [EOS, PAD])
    while len(reply) < limit:
        mask = mask_of(constraint)
        assert not constraint.error, constraint.error
        weight = mask.astype(np.float64)
        weight[closing] *= 5 + len(reply)
        token = int(rng.choice(len(mask), p=weight / weight.sum()))
        constraint.accept(token)
        if token in (EOS, PAD):
            assert constraint.done
            return reply, True
        reply.append(token)
        if constraint.done:
            assert mask_of(constraint).nonzero()[0].tolist() == [EOS, PAD]
            return reply, True
    return reply, False


def walk(compiled: CompiledGrammar, ids: list[int]) -> Constraint:
    """The state after `ids`, each of which the mask must allow."""
    constraint = compiled.new_constraint()
    for place, token in enumerate(ids):
        assert mask_of(constraint)[token], f"token {token} at {place} is not allowed"
        constraint.accept(token)
    return constraint


def finishes(constraint: Constraint, ids: list[int]) -> bool:
    """Whether the mask allows `ids`, one after another, and the reply is complete behind them."""
    for token in ids:
        mask = constraint.mask()
        if mask is None or not mask[token]:
            return False
        constraint.accept(token)
    return constraint.done


def matches(compiled: CompiledGrammar, tokenizer: Tokenizer, text: str) -> bool:
    return finishes(compiled.new_constraint(), [*tokenizer.encode(text), EOS])


# ---- what ends, matches


SCALARS: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "string", "minLength": 1, "maxLength": 4},
    {"type": "string", "pattern": "^[a-c]+$"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uuid"},
    {"type": "integer"},
    {"type": "integer", "minimum": -3, "maximum": 120},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1.5},
    {"type": "number", "multipleOf": 0.5},
    {"type": "boolean"},
    {"type": "null"},
    {"type": ["string", "null"]},
    {"const": 'a"b\\\n\u0000é🐋'},
    {"enum": ["red", 1, None, [2], {"k": True}]},
]


def objects(parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["a", "b", "not", "a b", "é", '"'])
    extra = st.sampled_from([True, False, {"type": "integer"}])

    def built(properties: dict[str, Any], drop: int, extra: Any) -> dict[str, Any]:
        required = list(properties)[drop:]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": extra}

    return st.builds(built, st.dictionaries(names, parts, max_size=3), st.integers(0, 2), extra)


def arrays(parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def built(item: dict[str, Any], least: int, more: int) -> dict[str, Any]:
        return {"type": "array", "items": item, "minItems": least, "maxItems": least + more}

    return st.builds(built, parts, st.integers(0, 2), st.integers(0, 2))


def unions(parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(lambda some: {"anyOf": some}, st.lists(parts, min_size=1, max_size=3))


schemas = st.recursive(
    st.sampled_from(SCALARS), lambda parts: st.one_of(objects(parts), arrays(parts), unions(parts)), max_leaves=5
)


def check_valid(asked: dict[str, Any], seed: int, grammars: GrammarCompiler, tokenizer: Tokenizer) -> None:
    reply, ended = sampled(
        grammars.compile(Grammar("json_schema", json.dumps(asked))).new_constraint(), tokenizer, seed
    )
    if ended:
        instance = json.loads(tokenizer.decode(reply))
        jsonschema.validate(instance, asked, format_checker=jsonschema.FormatChecker())
    assert not any(tokenizer.is_special(id_) for id_ in reply)


@run_with(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(asked=schemas, seed=st.integers(0, 999))
def test_a_reply_that_ends_is_valid(
    asked: dict[str, Any], seed: int, grammars: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    check_valid(asked, seed, grammars, tokenizer)


def test_no_spelling_of_a_name_escapes_what_is_said_of_it(grammars: GrammarCompiler, tokenizer: Tokenizer) -> None:
    compiled = grammars.compile(
        schema(properties={"a": {"type": "integer"}, "c": False}, patternProperties={"^x": False})
    )
    for text, takes in (
        ('{"a":1,"b\\n":"y"}', True),
        (r'{"a":1,"\u0061":"y"}', False),
        (r'{"\u0063":1}', False),
        (r'{"\u0078y":1}', False),
    ):
        assert matches(compiled, tokenizer, text) is takes, text
    for control in ("\0", "\x1f", "\x7f"):  # which have no other spelling
        text = json.dumps("a" + control).replace("\x7f", r"\u007f")
        assert matches(grammars.compile(schema(const="a" + control)), tokenizer, text), text


def test_json_is_any_object(grammars: GrammarCompiler, tokenizer: Tokenizer) -> None:
    compiled = grammars.compile(Grammar("json"))
    for text in ("{}", '{"a": [1, {"b": null}], "c": "}"}', '{\n    "a": 1.5e3\n}'):
        assert walk(compiled, tokenizer.encode(text)).done
        assert matches(compiled, tokenizer, text)
    for text in ("[]", "1", '{"a"}', "{} {}", '{"a": 1,}', "text", ""):
        assert not matches(compiled, tokenizer, text)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("[0-9]{3}-[0-9]{2}", ["123-45"], ["123-4", "123-456", "x123-45"]),
        ("(a|ab)(c|bcd)?", ["a", "abc", "abcd"], ["b", "abcdc"]),
        ("(a*)*b", ["b", "aaab"], ["a", "ba"]),
        ("^yes$", ["yes"], ["yes!", "oh yes"]),
        (".+", ["é🐋 x"], ["a\nb"]),
        (r"\d\d/[a-z_]+\n", ["12/ab_\n"], ["12/ab"]),
    ],
)
def test_a_pattern_holds_for_the_whole_reply(
    pattern: str, yes: list[str], no: list[str], grammars: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    compiled = grammars.compile(Grammar("regex", pattern))
    assert [text for text in yes if not matches(compiled, tokenizer, text)] == []
    assert [text for text in no if matches(compiled, tokenizer, text)] == []
    for seed in range(5):
        reply, ended = sampled(compiled.new_constraint(), tokenizer, seed, 100)
        assert not ended or re.fullmatch(pattern, tokenizer.decode(reply))


@run_with(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    choices=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6), min_size=1, max_size=5)
)
def test_a_choice_is_one_of_its_texts_as_they_stand(
    choices: list[str], grammars: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    compiled = grammars.compile(Grammar("choice", json.dumps(choices)))
    assert all(matches(compiled, tokenizer, choice) for choice in choices)
    for seed in range(3):
        reply, ended = sampled(compiled.new_constraint(), tokenizer, seed)
        assert ended
        assert tokenizer.decode(reply) in choices


NAMES: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
KEYWORDS: dict[str, tuple[dict[str, Any], list[str], list[str], list[str]]] = {
    # the schema; what it takes; what is masked; what is the answer's error
    "multipleOf": ({"type": "number", "multipleOf": 0.25}, ["0.25", "1.75", "-2"], ["0.3", "0.26"], []),
    "bounds": ({"type": "integer", "minimum": -3, "maximum": 120}, ["-3", "120"], ["-4", "121", "1.0"], []),
    "bounds of draft 4": (
        {"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 1, "exclusiveMinimum": True, "maximum": 3},
        ["2", "3"], ["1", "4"], [],
    ),
    "a constant of many digits": ({"enum": [12345678901234567, 1]}, ["1"], ["2"], []),
    "pattern": ({"type": "string", "pattern": r"^[ab]\d$"}, ['"a1"'], ['"c1"', '"a\u0663"', '"a1x"'], []),
    "format": ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"x"', '"2023-13-01"'], ['"2023-02-29"']),
    "a format that llguidance does not know": ({"type": "string", "format": "iri"}, ['"a:b"'], ["1"], ['"a b"']),
    "a format that nobody knows": ({"type": "string", "format": "uuid4"}, ['"x"'], ["1"], []),
    "additionalProperties": ({**NAMES, "additionalProperties": False}, ["{}", '{"a":1,"b":2}'], ['{"c":1}', '{"b":2,"a":1}'], []),
    "items of draft 7": (
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [{"type": "integer"}], "additionalItems": False},
        ["[1]", "[]"], ["[null]", "[1,2]"], [],
    ),
    "a reference": ({"$ref": "#/$defs/a", "$defs": {"a": {"$anchor": "x", "type": "null"}}}, ["null"], ["1"], []),
    "not": ({"not": {"type": "string"}}, ["1"], [], ['"a"']),
    "if": ({**NAMES, "if": {"required": ["a"]}, "then": {"required": ["b"]}}, ['{"a":1,"b":2}', "{}"], [], ['{"a":1}']),
    "oneOf that overlaps": ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 2}]}, ['"abc"'], ["1"], ['"ab"']),
    "oneOf of types": ({"oneOf": [{"type": "string"}, {"type": "null"}]}, ['"abc"', "null"], ["1"], []),
    "uniqueItems": ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, ["[1,2]"], ['["a"]'], ["[1,1]"]),
    "contains": ({"type": "array", "contains": {"const": 1}}, ["[0,1]"], ["1"], ["[]"]),
    "propertyNames": ({"type": "object", "propertyNames": {"pattern": "^x"}}, ['{"xa":1}'], ["1"], ['{"ax":1}']),
    "dependentRequired": ({**NAMES, "dependentRequired": {"a": ["b"]}}, ['{"b":1}'], ['{"a":"x"}'], ['{"a":1}']),
    "a name that comes twice": ({"type": "object", "minProperties": 2}, ['{"x":1,"y":1}'], ['{"x":1}'], ['{"x":1,"x":2}']),
    "options of llguidance": ({"x-guidance": {"item_separator": ";"}, "type": "array"}, ["[1,2]"], ["[1;2]"], []),
}  # fmt: skip


@pytest.mark.parametrize("name", KEYWORDS)
def test_a_keyword_is_enforced_or_checked(name: str, grammars: GrammarCompiler, tokenizer: Tokenizer) -> None:
    asked, takes, masked, faulty = KEYWORDS[name]
    compiled = grammars.compile(schema(**asked))
    for text in takes:
        after = walk(compiled, tokenizer.encode(text))
        after.accept(EOS)
        assert after.done and not after.error, text
    assert [text for text in masked if matches(compiled, tokenizer, text)] == []
    for text in faulty:
        after = walk(compiled, tokenizer.encode(text))
        if not after.done:
            after.accept(EOS)
        assert after.error.startswith(MISMATCH), text


# ---- special tokens


def test_special_tokens_are_never_part_of_a_reply(tokenizer: Tokenizer, grammars: GrammarCompiler) -> None:
    """Not even those that a file does not mark as special: their text is written letter by letter."""
    data = json.loads(tokenizer.source)
    for token in data["added_tokens"]:
        token["special"] = False
    unmarked = Tokenizer(json.dumps(data))
    for each in (grammars, GrammarCompiler(unmarked, unmarked.vocab_size, [EOS])):
        compiled = each.compile(Grammar("choice", '["<think>", "</think>"]'))
        assert not mask_of(compiled.new_constraint())[: len(data["added_tokens"])].any()
        assert walk(compiled, tokenizer.encode("<think>")).done
        string = each.compile(schema(type="string")).new_constraint()
        string.accept(tokenizer.encode('"')[0])
        inside = mask_of(string)
        assert inside.sum() > 150
        assert not inside[: len(data["added_tokens"])].any()


# ---- states


@pytest.mark.parametrize("marks", [(6,), (40, 41, 40, 42)])
def test_a_reply_that_thinks_is_bound_from_the_end_of_its_reasoning(
    marks: tuple[int, ...], grammars: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    compiled = grammars.compile(Grammar("choice", '["yes"]'))
    constraint = compiled.new_constraint(thought=ReasoningFormat(marks))
    assert isinstance(constraint, ConstraintAfterThinking)
    for token in (40, 41, 41, 40, 41, 40, 41, 40, *([42] if len(marks) > 1 else [6])):  # marks begun, broken off, done
        mask = mask_of(constraint)
        assert mask.sum() == len(mask) - 2  # anything but an end without an answer
        assert not mask[[EOS, PAD]].any()
        assert not constraint.done
        constraint.accept(token)
    assert np.array_equal(mask_of(constraint), mask_of(compiled.new_constraint()))
    for token in tokenizer.encode("yes"):
        constraint.accept(token)
    assert constraint.done


THINK, END = 5, 6


@pytest.mark.parametrize(
    ("before", "between", "well"),
    [
        ("", "", True),
        ("<think>so", "</think>", True),
        ("<think>", "</think>", True),
        ("", "</think>", True),
        ("<think>so", "</think>\n\n", True),
        ("<think>so", "</think>\n", True),
        ("<think>so", "</think>\n\n\n", False),
        ("<think>so", "", False),
        ("so", "</think>", False),
        ("<think>so", "</think>so", False),
        ("<think>so</think>", "</think>", False),
    ],
)
def test_a_model_that_may_think_answers_at_once_or_after_its_thought(
    before: str, between: str, well: bool, grammars: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    thought = ReasoningFormat((END,), open_ids=(THINK,), gap_ids=tokenizer.encode("\n\n"))
    constraint = grammars.compile(Grammar("choice", '["yes"]')).new_constraint(thought=thought)
    assert finishes(constraint, tokenizer.encode_trusted(f"{before}{between}yes")) == well


@pytest.mark.parametrize("between", ["</think>", "</think>\n\n", "\n</think>\n"])
def test_a_mark_without_a_token_is_found_however_it_is_spelt(
    between: str, grammars: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    thought = ReasoningFormat(end_text="</think>", gap_ids=tokenizer.encode("\n\n"))
    compiled = grammars.compile(Grammar("choice", '["yes"]'))
    assert finishes(compiled.new_constraint(thought), tokenizer.encode(f"so it is{between}yes"))
    letters = [id_ for mark in f"so{between}yes" for id_ in tokenizer.encode(mark)]
    assert finishes(compiled.new_constraint(thought), letters)
    assert not finishes(compiled.new_constraint(thought), tokenizer.encode("so it is</thinkyes"))


# ---- what is refused, and its nearest valid twin


def nested(depth: int) -> str:
    return '{"type":"array","items":' * depth + "{}" + "}" * depth


HUGE = [str(number) for number in range(10**6)]
POISONS: dict[str, tuple[Grammar, Grammar, str]] = {
    "an empty schema": (Grammar("json_schema", ""), Grammar("json_schema", "{}"), "is empty"),
    "an empty pattern": (Grammar("regex", ""), Grammar("regex", " "), "is empty"),
    "an empty list": (Grammar("choice", "[]"), Grammar("choice", '["a"]'), "not a list of non-empty strings"),
    "an empty choice": (Grammar("choice", '["a", ""]'), Grammar("choice", '["a", " "]'), "non-empty strings"),
    "a choice that is a number": (
        Grammar("choice", "[1]"),
        Grammar("choice", '["1"]'),
        "not a list of non-empty strings",
    ),
    "not JSON": (Grammar("json_schema", "{'a': 1}"), Grammar("json_schema", "{}"), "is not JSON"),
    "NaN": (Grammar("json_schema", '{"minimum": NaN}'), Grammar("json_schema", '{"minimum": 0}'), "Out of range float"),
    "a number beyond all": (Grammar("json_schema", '{"minimum": 1e999}'), schema(minimum=1e9), "Out of range float"),
    "digits without end": (Grammar("json_schema", '{"minimum":' + "9" * 5000 + "}"), schema(minimum=9), "is not JSON"),
    "a list for a schema": (Grammar("json_schema", "[1]"), Grammar("json_schema", "true"), "not an object"),
    "a schema that is false": (Grammar("json_schema", "false"), Grammar("json_schema", "true"), "no reply"),
    "nesting without end": (Grammar("json_schema", nested(5000)), Grammar("json_schema", nested(30)), "deeper than"),
    "brackets without end": (Grammar("choice", "[" * 100_000), Grammar("choice", '["["]'), "deeper than"),
    "too many bytes": (schema(title="a" * MAX_BYTES), schema(title="a" * 1000), "bytes"),
    "a million choices": (Grammar("choice", json.dumps(HUGE)), Grammar("choice", json.dumps(HUGE[:1000])), "bytes"),
    "too many choices": (
        Grammar("choice", json.dumps(HUGE[: MAX_CHOICES + 1])),
        Grammar("choice", json.dumps(HUGE[:MAX_CHOICES])),
        f"{MAX_CHOICES + 1} choices",
    ),
    "a huge enum": (schema(enum=HUGE), schema(enum=HUGE[:1000]), "bytes"),
    "half a surrogate pair": (Grammar("regex", "a\ud800"), Grammar("regex", "a\U0001f40b"), "surrogate"),
    "half a pair, escaped": (Grammar("json_schema", '{"const": "\\ud800"}'), schema(const="\U0001f40b"), "surrogate"),
    "half a pair in a key": (Grammar("json_schema", '{"\\udc00": 1}'), schema(title="\0"), "surrogate"),
    "a remote reference": (
        schema(**{"$ref": "http://127.0.0.1:9/a.json"}),
        schema(**{"$ref": "#/$defs/a", "$defs": {"a": {}}}),
        "cannot fetch",
    ),
    "a reference to a file": (
        schema(properties={"a": {"$ref": "file:///etc/passwd"}}),
        schema(properties={"$ref": {"const": "file:///etc/passwd"}}),
        "cannot fetch",
    ),
    "a reference by another base": (
        schema(**{"$id": "http://127.0.0.1:9/", "anyOf": [{"$ref": "a.json"}]}),
        schema(**{"$id": "http://127.0.0.1:9/", "anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {}}}),
        "cannot fetch",
    ),
    "a reference to nothing": (schema(**{"$ref": "#/$defs/a"}), schema(**{"$defs": {"a": {}}}), "does not exist"),
    "a reference to itself": (
        schema(**{"$ref": "#"}),
        schema(type="object", properties={"a": {"$ref": "#"}}),
        "no reply",
    ),
    "more references than can be followed": (
        chain(1500, "items"),
        chain(300, "items"),
        "takes more than",
    ),
    "a chain of references": (chain(3000), chain(60), "takes more than"),
    "a least number of items": (schema(items={"minItems": 1e9}), schema(minItems=100), "minItems"),
    "what contradicts itself": (schema(type="string", minLength=3, maxLength=2), schema(maxLength=2), "no reply"),
    "a pattern that nobody can read": (
        schema(items={"pattern": "(?>a)"}),
        schema(items={"pattern": "(?:a)"}),
        "at #/items/pattern",
    ),
    "a step that is none": (schema(multipleOf=0), schema(multipleOf=0.5), "at #/multipleOf"),
    "a step of too many remainders": (
        schema(type="integer", multipleOf=86400),
        schema(multipleOf=3600),
        "'multipleOf' add up",
    ),
    "steps of too many remainders together": (
        schema(properties={"a": {"multipleOf": 7501}, "b": {"items": {"multipleOf": 7500}}}),
        schema(properties={"a": {"multipleOf": 7500}, "b": {"items": {"multipleOf": 7500}}}),
        "more than 15,000",
    ),
    "properties that are none": (schema(properties=[]), schema(properties={}), "at #/properties"),
    "a schema that is none": (schema(properties={"a": 1}), schema(properties={"a": True}), "#/properties/a"),
    "a choice of nothing": (schema(items={"anyOf": []}), schema(items={"anyOf": [True]}), "at #/items/anyOf"),
    "a length that is none": (schema(minLength="1"), schema(minLength=1), "at #/minLength"),
    "an unknown type": (schema(type="strin"), schema(type="string"), "strin"),
    "steps without end": (
        schema(type="integer", multipleOf=12345.678),
        schema(type="integer", multipleOf=12345),
        "takes more than",
    ),
    "an endless look at each letter": (
        schema(allOf=[{"pattern": f"(a{{90}}|b{{80}}){{99}}{number}"} for number in range(1000)]),
        schema(allOf=[{"pattern": f"(a{{90}}|b{{80}}){{99}}{number}"} for number in range(1)]),
        "take",
    ),
    "the least number of 64 bits": (schema(enum=["a", -(2**63)]), schema(enum=["a", -(2**53) + 1]), "takes more than"),
    "a pattern that never closes its class": (
        schema(type="string", pattern="[^[" * 40_000),
        schema(type="string", pattern="[^a]" * 100),
        "at #/pattern",
    ),
    "a pattern that looks ahead": (Grammar("regex", "(?=a)a"), Grammar("regex", "(?:a)a"), "look-around"),
    "a pattern that refers back": (Grammar("regex", r"(a)\1"), Grammar("regex", "(a)1"), "backreferences"),
    "an open bracket": (Grammar("regex", "("), Grammar("regex", r"\("), "unclosed"),
    "a pattern of nothing": (Grammar("regex", r"[^\s\S]"), Grammar("regex", r"[\s\S]"), "no reply"),
    "too long a pattern": (Grammar("regex", "x" * (MAX_PATTERN + 1)), Grammar("regex", "x" * 1000), "bytes"),
    "repetition without end, in a schema": (
        schema(properties={"a": {"pattern": "a{2,99999999999}"}}),
        schema(properties={"a": {"pattern": "a{2,9999}"}}),
        "at #/properties/a/pattern",
    ),
    "brackets of a pattern": (
        Grammar("regex", "(" * 3000 + "a" + ")" * 3000),
        Grammar("regex", "((a))"),
        "invalid regex",
    ),
}


@pytest.mark.parametrize("name", POISONS)
def test_a_poison_is_refused_by_name_and_its_twin_runs(name: str, grammars: GrammarCompiler) -> None:
    poison, twin, words = POISONS[name]
    start = time.process_time()
    with pytest.raises(DataError, match=words) as caught:
        grammars.compile(poison, where="request")
    error = caught.value
    assert error.where == "request"
    assert error.remedy
    assert len(str(error)) < 500
    str(error).encode()
    assert mask_of(grammars.compile(twin).new_constraint()).any()
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    "asked",
    [
        Grammar("regex", "(.{1,1000}){1,1000}"),
        Grammar("regex", "((a{1,100}){1,100}){1,100}"),
        Grammar("regex", "(((((a+)+)+)+)+)+"),
        Grammar("regex", ".*" * 500),
        Grammar("regex", "(x+x+)+y"),
        Grammar("regex", "[a-z]{1,500}.*" * 20),
        schema(type="string", pattern="(.*a){30}"),
        schema(type="array", minItems=10_000),
        schema(anyOf=[{"type": "object", "properties": {f"p{i}": {"type": "string"}}} for i in range(200)]),
    ],
    ids=lambda asked: asked.source[:40],
)
def test_what_backtracks_elsewhere_takes_its_time_here_or_gives_up(
    asked: Grammar, grammars: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    """It may be refused or end early with its reason; no token of it takes long."""
    try:
        constraint = grammars.compile(asked).new_constraint()
    except DataError:
        return
    rng = np.random.default_rng(0)
    for _ in range(60):
        start = time.thread_time()
        constraint.accept(int(rng.choice(mask_of(constraint).nonzero()[0])))
        assert time.thread_time() - start < 1.0
        if constraint.done:
            break


def test_what_gives_up_while_it_runs_says_so_and_ends(
    grammars: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_process, "LIMITS", {"max_lexer_states": 25, "verbose_errors": False})
    constraint = grammars.compile(Grammar("regex", "[a-c]{4}d{40}")).new_constraint()
    drawn = 0
    while not constraint.done:
        constraint.accept(int(mask_of(constraint).nonzero()[0][0]))
        drawn += 1
    assert 4 <= drawn < 44
    assert "limit" in constraint.error or "states" in constraint.error
    assert mask_of(constraint).nonzero()[0].tolist() == [EOS, PAD]


@pytest.mark.parametrize("package", ["llguidance", "jsonschema_rs"])
def test_without_a_package_the_error_says_what_to_install(
    package: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf'need {package}.*\n.*pip install "rorqual\[serve\]"'):
        GrammarCompiler(tokenizer, tokenizer.vocab_size, [EOS]).compile(Grammar("json"))
