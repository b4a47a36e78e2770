"""Keywords of JSON schemas, one by one: what matches is taken, what does not is masked, or is the answer's error and names the keyword."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from rorqual.core.errors import DataError
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.grammar.automaton import translate
from rorqual.engine.grammar.check import MISMATCH
from rorqual.engine.grammar.compiler import Grammars
from rorqual.engine.request import Grammar

EOS = 1
NAMES = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}, "c": {"type": "integer"}}}
CLOSED = {**NAMES, "additionalProperties": False}
NO, FAULT = "masked", "the answer's error"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.byte_level()


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, tokenizer.vocab_size, [EOS])


def told(grammars: Grammars, tokenizer: Tokenizer, grammar: Grammar, text: str) -> str:
    """What comes of a reply: empty where it is taken, `NO` where a token of it is masked, else its error."""
    try:
        constraint = grammars.compile(grammar).start()
    except DataError as error:
        return f"refused: {error}"
    for token in [*tokenizer.encode(text), EOS]:
        mask = constraint.mask()
        if mask is None or not mask[token]:
            return NO
        constraint.accept(token)
    assert constraint.done
    assert constraint.copy().error == constraint.error
    return constraint.error


SCHEMAS: dict[str, tuple[Any, list[str], list[str], list[str]]] = {
    # the schema; what it takes; what is masked; what is found afterwards
    "multipleOf 0.25": ({"type": "number", "multipleOf": 0.25}, ["0.5", "0.50", "0.25", "1", "1.75", "-2"], ["0.3", "0.26"], []),
    "multipleOf and a bound": ({"type": "number", "multipleOf": 0.125, "minimum": 0}, ["0.5", "0.25", "0.125", "3"], ["0.1", "-1"], []),
    "multipleOf of an integer": ({"type": "integer", "multipleOf": 1.5}, ["3", "-6", "0"], ["1", "4"], []),
    "multipleOf of no use": ({"type": ["integer", "null"], "multipleOf": 7, "minimum": 1, "maximum": 5}, ["null"], ["1", "7"], []),
    "a small span": ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5}, ["0.1", "0.499"], ["0", "0.5", "-0"], []),
    "a small span below 0": ({"type": "number", "minimum": -0.5, "exclusiveMaximum": 0}, ["-0.1", "-0.5"], ["0", "-0", "-0.6"], []),
    "a bound of many digits": ({"type": "number", "minimum": 92.19050918627971}, ["93", "92.2"], ["92.19", "92.1905091862797"], []),
    "a bound beyond 64 bits": ({"type": "integer", "minimum": 0, "maximum": 2**64}, ["1", str(2**64)], ["-1"], [str(2**64 + 1)]),
    "bounds of draft 4": ({"type": "integer", "minimum": 1, "exclusiveMinimum": True, "maximum": 3}, ["2", "3"], ["1", "4"], []),
    "two bounds at one value": ({"type": "integer", "minimum": 3, "exclusiveMinimum": 3, "maximum": 6}, ["4", "6"], ["3"], []),
    "a bound of another type": ({"type": "string", "minimum": 3, "maxLength": 2}, ['"ab"'], ['"abc"', "4"], []),
    "not of a type": ({"not": {"type": "string"}}, ["1", "null", "[]"], ['"a"'], []),
    "not of texts": ({"type": "string", "not": {"enum": ["no", "a.b"]}}, ['"yes"', '"n"', '"nope"', '"aXb"'], ['"no"', '"a.b"'], []),
    "not of a number": ({"type": "integer", "not": {"const": 3}}, ["2", "4", "-3"], ["3"], []),
    "not of names": ({**CLOSED, "not": {"required": ["a", "b"]}}, ['{"a":1}', '{"b":1}', "{}"], ['{"a":1,"b":1}'], []),
    "not of a pattern": ({"type": "string", "not": {"pattern": "^a|z$"}}, ['"ba"', '""', '"zb"'], ['"ab"', '"bz"'], []),
    "not of items": ({"type": "array", "not": {"items": {"type": "null"}}}, ["[1]"], ["1"], ["[null]", "[]"]),
    "if": (
        {**CLOSED, "if": {"properties": {"a": {"const": 1}}, "required": ["a"]}, "then": {"required": ["b"]}, "else": {"required": ["c"]}},
        ['{"a":1,"b":2}', '{"a":2,"c":2}', '{"c":1}'],
        ['{"a":1,"c":2}', '{"a":2}', "{}"],
        [],
    ),
    "if that has no contrary": (
        {"type": "array", "if": {"contains": {"const": 1}}, "then": {"minItems": 2}}, ["[1,2]", "[2]"], ["1"], ["[1]"],
    ),
    "oneOf that overlaps": ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 2}]}, ['"abc"'], ["1", '"ab"'], []),
    "oneOf of numbers": ({"oneOf": [{"multipleOf": 2}, {"multipleOf": 3}], "type": "integer"}, ["2", "3"], ["1"], ["6"]),
    "oneOf of true": ({"oneOf": [True, {"type": "null"}]}, ["1"], ["null"], []),
    "an anyOf with an impossible branch": (
        {"anyOf": [{"type": "string", "pattern": "^a$", "const": "b"}, {"$ref": "#/$defs/x"}, {"type": "null"}], "$defs": {"x": False}},
        ["null"], ['"a"', '"b"'], [],
    ),
    "a reference to an impossible definition": (
        {"anyOf": [{"$ref": "#/$defs/x"}, {"type": "null"}],
         "$defs": {"x": {"type": "object", "required": ["b"], "additionalProperties": False}}},
        ["null"], ["{}", '{"b":1}'], [],
    ),
    "an impossible property": (
        {"type": "object", "properties": {"a": {"type": "integer", "minimum": 2, "maximum": 1}, "b": {}}}, ['{"b":1}'], ['{"a":1}'], [],
    ),
    "uniqueItems of few values": ({"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True}, ["[]", '["b","a"]'], ['["a","a"]'], []),
    "uniqueItems": ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, ["[1,2]"], ['["a"]'], ["[1,1]", "[1,2,1]"]),
    "uniqueItems of some types": ({"uniqueItems": True, "items": {"type": "boolean"}}, ["[true]", "3", '"a"'], ["[true,true]", "[1]"], []),
    "contains": ({"type": "array", "contains": {"const": 1}, "maxContains": 1}, ["[0,1]"], ["1"], ["[]", "[1,1]"]),
    "items of draft 7": (
        {"type": "array", "items": [{"type": "integer"}], "additionalItems": {"type": "null"}}, ["[1]", "[1,null]"], ["[null]", "[1,2]"], [],
    ),
    "unevaluatedItems": ({"type": "array", "prefixItems": [{"type": "null"}], "unevaluatedItems": False}, ["[null]"], ["[null,1]", "[1]"], []),
    "propertyNames of an enum": (
        {"propertyNames": {"$ref": "#/$defs/n"}, "additionalProperties": {"type": "integer"}, "$defs": {"n": {"enum": ["a", "b"]}}},
        ["{}", '{"a":1,"b":2}'], ['{"c":1}', '{"a":"x"}', '{"a":1,"a":2}'], [],
    ),
    "propertyNames of a pattern": ({"type": "object", "propertyNames": {"pattern": "^x"}}, ['{"xa":1}', "{}"], ['{"ax":1}'], []),
    "propertyNames of a length": ({"type": "object", "propertyNames": {"maxLength": 2}}, ['{"ab":1}'], ['{"abc":1}'], []),
    "propertyNames of a format": ({"type": "object", "propertyNames": {"format": "date"}}, ['{"2024-02-29":1}'], ['{"2023-02-29":1}'], []),
    "propertyNames beside others": ({**NAMES, "propertyNames": {"pattern": "^[a-d]$"}}, ['{"a":1,"d":2}'], ['{"a":"x"}'], ['{"e":1}']),
    "minProperties of optional ones": ({**CLOSED, "minProperties": 2}, ['{"a":1,"c":1}', '{"a":1,"b":1,"c":1}'], ["{}", '{"b":1}'], []),
    "maxProperties of optional ones": ({**CLOSED, "maxProperties": 1}, ['{"b":1}', "{}"], ['{"a":1,"c":1}'], []),
    "maxProperties beside a required one": (
        {**CLOSED, "required": ["a"], "maxProperties": 2},
        ['{"a":1}', '{"a":1,"c":1}'], ['{"a":1,"b":1,"c":1}', '{"b":1}'], [],
    ),
    "minProperties beside a required one": (
        {**CLOSED, "required": ["a"], "minProperties": 2},
        ['{"a":1,"c":1}'], ['{"a":1}', '{"b":1,"c":1}'], [],
    ),
    "minProperties of any": ({"type": "object", "minProperties": 2}, ['{"x":1,"y":1}'], ['{"x":1}'], ['{"x":1,"x":2}']),
    "maxProperties beside others": ({**NAMES, "maxProperties": 1}, ['{"a":1}', '{"z":1}'], ['{"a":"x"}'], ['{"a":1,"z":1}']),
    "dependentRequired": ({**CLOSED, "dependentRequired": {"a": ["b"]}}, ['{"a":1,"b":1}', '{"c":1}', "{}"], ['{"a":1}'], []),
    "dependencies of draft 7": (
        {**CLOSED, "dependencies": {"a": ["b"], "b": {"required": ["c"]}}}, ['{"a":1,"b":1,"c":1}', '{"b":1,"c":1}'], ['{"a":1}', '{"b":1}'], [],
    ),
    "unevaluatedProperties": (
        {"allOf": [{"properties": {"a": {"type": "null"}}}], "properties": {"b": True}, "unevaluatedProperties": False, "type": "object"},
        ['{"b":1}', '{"a":null}'], ['{"c":1}', '{"a":1}'], [],
    ),
    "patternProperties that overlap": (
        {"type": "object", "patternProperties": {"^a": {"type": "integer"}, "b$": {"minimum": 3}}}, ['{"ab":3}', '{"a":1}'], ["1"], ['{"ab":1}'],
    ),
    "patternProperties that look ahead": (
        {"type": "object", "patternProperties": {"^(?!x)": {"type": "null"}}, "additionalProperties": False}, ['{"a":null}'], ['{"x":null}'], [],
    ),
    "look-ahead": ({"type": "string", "pattern": r"^(?=.*\d)(?=.*[a-z])[a-z\d]{3,}$"}, ['"ab1"'], ['"abc"', '"123"', '"a1"'], []),
    "look-ahead for what is not": ({"type": "string", "pattern": "^(?!(admin|root)$)[a-z]+$"}, ['"admins"', '"roo"'], ['"root"', '"admin"'], []),
    "look-ahead again and again": ({"type": "string", "pattern": "^((?!bad).)*$"}, ['"ba"', '"babd"', '""'], ['"bad"', '"xbady"'], []),
    "look-behind": ({"type": "string", "pattern": "(?<!a)b$"}, ['"cb"', '"b"'], ['"ba"'], ['"ab"']),
    "a reference back": ({"type": "string", "pattern": r"^([ab])\1$"}, ['"aa"'], ['"ac"'], ['"ab"']),
    "word boundaries": ({"type": "string", "pattern": r"\bcat\b"}, ['"a cat"'], ['"dog"'], ['"cats"']),
    "all but a quotation mark": ({"type": "string", "pattern": '^[^"]+$'}, ['"a"', r'"\n\\"', '"é"'], [r'"\""', '""'], []),
    "all but a backslash": ({"type": "string", "pattern": r"^[^\\/]$"}, ['"a"', r'"\""', r'"\t"'], [r'"\\"', '"/"'], []),
    "escapes": ({"type": "string", "pattern": r"^\u0041\x42\u{43}\cJ\/\p{Lu}$"}, [r'"ABC\n/É"'], ['"ABC"'], []),
    "anchors of Python": ({"type": "string", "pattern": r"\A(?P<x>a)\Z"}, ['"a"'], ['"ab"'], []),
    "(?i)": ({"type": "string", "pattern": "(?i)^ab[c-d]$"}, ['"ABc"', '"abD"'], ['"abe"'], []),
    "anchors in a choice": ({"type": "string", "pattern": "^a|b$"}, ['"ac"', '"cb"'], ['"ca"', '"bc"'], []),
    "all but a property": ({"type": "string", "pattern": r"^[^\p{L}x-]+$"}, ['"12"', '"_1"'], ['"a"', '"1b"', '"-"'], []),
    "a set with a property": ({"type": "string", "pattern": r"^[\p{Lu}_]+$"}, ['"A_"'], ['"a"', '"1"'], []),
    "an unknown format": ({"type": "string", "format": "binary"}, ['"x"'], ["1"], []),
    "a date of the calendar": ({"type": "string", "format": "date"}, ['"2024-02-29"', '"2000-02-29"'], ['"2023-02-29"', '"1900-02-29"'], []),
    "uuid4": ({"type": "string", "format": "uuid4"}, ['"f47ac10b-58cc-4372-a567-0e02b2c3d479"'], ['"f47ac10b-58cc-1372-a567-0e02b2c3d479"'], []),
    "a format that is checked": ({"type": "string", "format": "regex"}, ['"a+"'], ["1"], ['"("']),
    "base64": ({"type": "string", "contentEncoding": "base64"}, ['"YQ=="', '""'], ['"Y"', '"Y==="'], []),
    "an anchor": ({"items": {"$ref": "#x"}, "$defs": {"a": {"$anchor": "x", "type": "null"}}, "type": "array"}, ["[null]"], ["[1]"], []),
    "an $id": (
        {"$id": "http://a.b/c.json", "type": "array", "items": {"$ref": "d.json"}, "$defs": {"a": {"$id": "d.json", "type": "null"}}},
        ["[null]"], ["[1]"], [],
    ),
    "a reference into the middle": (
        {"type": "array", "prefixItems": [{"type": "null"}], "items": {"$ref": "#/prefixItems/0"}}, ["[null,null]"], ["[null,1]"], [],
    ),
    "ASCII in patterns": ({"type": "string", "pattern": r"^\d\w$"}, ['"1a"'], ['"١a"', '"1é"'], []),
    "Unicode's white space in patterns": ({"type": "string", "pattern": r"^\s$"}, ['"\u00a0"', '" "'], ['"a"'], []),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_keyword_holds(name: str, grammars: Grammars, tokenizer: Tokenizer) -> None:
    schema, takes, masked, found = SCHEMAS[name]
    grammar = Grammar("json_schema", json.dumps(schema))
    assert {text: told(grammars, tokenizer, grammar, text) for text in takes} == dict.fromkeys(takes, "")
    assert {text: told(grammars, tokenizer, grammar, text) for text in masked} == dict.fromkeys(masked, NO)
    for text in found:
        fault = told(grammars, tokenizer, grammar, text)
        assert fault.startswith(MISMATCH) and " at #" in fault, text


def test_an_error_of_an_answer_names_the_keyword_and_its_place(grammars: Grammars, tokenizer: Tokenizer) -> None:
    schema = {
        "type": "object",
        "properties": {"tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}},
    }
    assert told(grammars, tokenizer, Grammar("json_schema", json.dumps(schema)), '{"tags":["x","x"]}') == (
        f'{MISMATCH}: \'uniqueItems\' at #/properties/tags does not hold for ["x", "x"]'
    )


def test_only_a_known_format_that_no_grammar_can_hold_is_checked_afterwards(grammars: Grammars) -> None:
    for name, checked in (("iri", True), ("date", False), ("of a kind that nobody knows", False)):
        grammar = Grammar("json_schema", json.dumps({"type": "string", "format": name}))
        assert (grammars.compile(grammar).fault is not None) == checked, name


def test_properties_come_in_the_order_of_the_schema(grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammar = Grammar("json_schema", json.dumps(CLOSED))
    assert told(grammars, tokenizer, grammar, '{"a":1,"b":2}') == ""
    assert told(grammars, tokenizer, grammar, '{"b":2,"a":1}') == NO


def test_classes_of_a_regular_expression_are_unicodes(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """As in Rust's regex, which llguidance documents; in a schema's pattern they are ECMA-262's, above."""
    for text, taken in (("1a", ""), ("١é", ""), ("aa", NO)):
        assert told(grammars, tokenizer, Grammar("regex", r"\d\w"), text) == taken


@pytest.mark.parametrize(
    "pattern",
    [
        "^" + "(a(?=b)|b(?!c)|c)" * 200, "^(?!(.*a){30}).*$", "^(?!.*a.{10}b).*$",
        "(((((((((a)\\9\\9)\\8\\8)\\7\\7)\\6\\6)\\5\\5)\\4\\4)\\3\\3)\\2\\2)\\1\\1",
        "^" + "(?!" * 50 + "a" + ")" * 50, "^" + "((((a(?=b)){1,3}){1,3}){1,3}){1,3}" * 3, "^" + "".join(f"(?!.*w{i})" for i in range(60)),
    ],
    ids=range(7),
)  # fmt: skip
def test_no_pattern_takes_long_to_translate(pattern: str) -> None:
    began = time.thread_time()
    translate(pattern)
    assert time.thread_time() - began < 3


def test_what_multiplies_is_checked_instead(grammars: Grammars) -> None:
    names = [f"p{number}" for number in range(30)]
    chain = [{"if": {"properties": {n: {"const": n}}, "required": [n]}, "then": {"required": [f"{n}x"]}} for n in names]
    inner: Any = {"type": "integer"}
    for _ in range(3):
        inner = {
            "type": "object",
            "properties": dict.fromkeys(names[:6], inner),
            "additionalProperties": False,
            "minProperties": 3,
        }
    for schema in ({"allOf": chain}, inner):
        assert grammars.compile(Grammar("json_schema", json.dumps(schema))).fault is not None


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"type": "string", "pattern": "^a$", "const": "b"}, False]},
        {"$ref": "#/$defs/one", "$defs": {"one": {"type": "object", "required": ["b"], "additionalProperties": False}}},
    ],
    ids=["branches", "a reference"],
)
def test_what_no_one_can_write_is_refused_in_true_words(grammars: Grammars, schema: object) -> None:
    with pytest.raises(DataError, match="no reply can match"):
        grammars.compile(Grammar("json_schema", json.dumps(schema)))
