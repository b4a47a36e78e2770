"""Forced calls in DSML: what the format writes of arguments that fit is allowed, and what ends fits and is read."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from test_grammar_calls import FORMATS, allows, calls, grammars, written

from rorqual.core.errors import DataError
from rorqual.core.records import Tool
from rorqual.data.chat.dsml import END_PARAMETER, PARAMETER
from rorqual.data.chat.special_tokens import restore_token_names

NAMES = [name for name in FORMATS if name.startswith("deepseek-v3.2")]
EITHER = pytest.mark.parametrize("name", NAMES)
WIDE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 2, "maxLength": 6},
        "kind": {"$ref": "#/$defs/Kind"},
        "days": {"type": ["integer", "string", "null"], "maximum": 9},
        "maybe": {"anyOf": [{"type": "string", "pattern": "^[a-z]*$"}, {"type": "null"}]},
        "list": {"type": "array", "items": {"$ref": "#/$defs/Kind"}, "maxItems": 2},
        "any": {},
        "never": False,
    },
    "required": ["city", "kind"],
    "$defs": {"Kind": {"type": "string", "enum": ["a b", "</", '"}']}},
}
FIT: list[dict[str, Any]] = [
    {"city": "Zü", "kind": "a b"},
    {"city": "<b>\n\"\"", "kind": "</"},
    {"city": "</</</", "kind": '"}', "days": 9},
    {"city": "Bern", "kind": "a b", "days": "</para", "maybe": "", "list": ["</", "a b"], "any": {"a": [1.5, "</"]}},
    {"city": "Bern", "kind": "a b", "days": None, "maybe": None, "list": [], "any": "{}"},
]  # fmt: skip
MISFIT: list[dict[str, Any]] = [
    {"city": "Z", "kind": "a b"},
    {"city": "Zuerich", "kind": "a b"},
    {"city": 12, "kind": "a b"},
    {"city": "Bern"},
    {"city": "Bern", "kind": "c"},
    {"city": "Bern", "kind": "a b", "days": 10},
    {"city": "Bern", "kind": "a b", "days": 1.5},
    {"city": "Bern", "kind": "a b", "maybe": 1},
    {"city": "Bern", "kind": "a b", "list": ["c"]},
    {"city": "Bern", "kind": "a b", "never": 1},
]


def said(name: str, arguments: dict[str, Any]) -> list[int]:
    return written(FORMATS[name], ("wide", json.dumps(arguments, ensure_ascii=False)))


@EITHER
def test_arguments_that_fit_are_allowed_and_others_are_not(name: str) -> None:
    compiled = grammars(name).compile(calls(wide=WIDE))
    for arguments in FIT:
        jsonschema.validate(arguments, WIDE)
        ids = said(name, arguments)
        assert allows(compiled.new_constraint(), ids), arguments
        assert json.loads(FORMATS[name].parse(ids, "off", [Tool("wide")]).tool_calls[0].arguments) == arguments
    for arguments in MISFIT:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(arguments, WIDE)
        assert not allows(compiled.new_constraint(), said(name, arguments)), arguments


@EITHER
def test_json_is_spelled_as_the_format_spells_it(name: str) -> None:
    """A list is compact and without \\u escapes, also where it is one of an enumeration."""
    chat = FORMATS[name]
    lists = {"list": {"type": "array", "items": {"type": "string"}}, "one": {"enum": [["Zü", 1]]}}
    compiled = grammars(name).compile(calls(wide={"properties": lists}))
    for key, text, fits in (
        ("list", '["a b"]', True),
        ("list", '["\\u0061 b"]', False),
        ("list", '["a", "b"]', True),
        ("list", '["a",   "b"]', False),
        ("one", '["Zü", 1]', True),
        ("one", '["Z\\u00fc", 1]', False),
    ):
        frame = chat.call_frame
        assert frame is not None
        reply = frame.begin + frame.call("wide", f'{PARAMETER}{key}" string="false">{text}{END_PARAMETER}') + frame.end
        ids = [*chat.tokenizer.encode_trusted(restore_token_names(reply)), chat.stop_ids[0]]
        assert allows(compiled.new_constraint(), ids) == fits, text


def test_a_string_spells_tags_only_where_they_are_told_by_a_token() -> None:
    for name in NAMES:
        compiled = grammars(name).compile(
            calls(wide={"properties": {"text": {"type": "string"}, "what": {"const": "｜DSML｜"}}})
        )
        assert allows(compiled.new_constraint(), said(name, {"text": "</｜DSML|parameter>"}))
        for arguments in ({"text": "a</｜DSML｜parameter>b"}, {"text": "｜DSML｜"}, {"what": "｜DSML｜"}):
            chat, ids = FORMATS[name], said(name, arguments)
            read = chat.parse(ids, "off", [Tool("wide")]).tool_calls
            exact = bool(read) and json.loads(read[0].arguments) == arguments
            assert allows(compiled.new_constraint(), ids) == exact == ("text" not in name)


@EITHER
def test_parameters_behind_references_and_alternatives_are_found(name: str) -> None:
    args = {"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a"]}
    more = {"properties": {"c": {"type": "boolean"}}, "required": ["c"]}
    other = {"properties": {"d": {"type": "null"}}, "required": ["d"]}
    for schema in (
        {"$ref": "#/$defs/more", **args, "$defs": {"more": more}},
        {"allOf": [args, {"$ref": "#/$defs/more"}], "$defs": {"more": more}},
        {**args, "anyOf": [more, other]},
    ):  # fmt: skip
        compiled = grammars(name).compile(calls(wide=schema))
        assert allows(compiled.new_constraint(), said(name, {"a": "x", "b": 1, "c": True}))
        assert not allows(compiled.new_constraint(), said(name, {"b": 1, "c": True})), "a is required"
        constraint = compiled.new_constraint()
        assert not allows(constraint, said(name, {"a": "x"})) or "does not hold" in constraint.error


@EITHER
def test_arguments_that_cannot_be_are_refused_and_their_twin_runs(name: str) -> None:
    poison = {"required": ["a"], "properties": {"a": False}}
    with pytest.raises(DataError, match=r"the parameters of 'wide': .*no reply can match"):
        grammars(name).compile(calls(wide=poison))
    twin = {"required": ["b"], "properties": {"a": False}}
    assert allows(grammars(name).compile(calls(wide=twin)).new_constraint(), said(name, {"b": [1]}))
