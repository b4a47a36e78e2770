"""Grammar rules for the arguments of DSML calls (see `data/chat/dsml.py`).

Each declared parameter has a rule, in the order of the schema. Optional parameters may be left out of a call. The rules forbid
undeclared parameters, even if the schema allows additional properties. String values are plain text, and other values follow
their subschema. The rules do not enforce string patterns, string formats or keywords that relate several parameters. String
patterns, string formats and keywords that relate several parameters are validated when the call is complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from rorqual.data.chat.dsml import CALL, DSML, END_CALL, END_PARAMETER, PARAMETER
from rorqual.data.chat.special_tokens import restore_token_names

HOLDERS = ("$defs", "definitions")
MAX_LENGTH = 10_000
"""Largest `maxLength` that the grammar enforces."""
_REFERENCE = re.compile(r'"\$(?:dynamicR|recursiveR|r)ef": "(?!#/(?:\$defs|definitions)/)')
"""Matches a schema reference that does not point to an entry of `$defs` or `definitions`."""
_VALUE_TYPES = ("null", "boolean", "integer", "number", "array", "object")


@dataclass(frozen=True)
class DsmlRules:
    """Writes the rules for the DSML calls of one grammar's functions.

    `spelled` converts marked text to Lark terminals, with a token id for each special token of the tokenizer. `options` are
    llguidance's options for JSON.
    """

    spelled: Callable[[str], Sequence[str]]
    options: Mapping[str, Any]
    has_token: bool
    """Whether the tokenizer has the special token `｜DSML｜`. If False, string arguments must not contain the text `｜DSML｜`."""

    def call_rules(self, rule: str, function: str, schema: Mapping[str, Any]) -> Iterator[str]:
        """Yield the rules of a DSML call of `function`, whose arguments have the schema `schema`. `rule` is the name of the
        first yielded rule."""
        properties, required = _collect_parameters(schema, schema, set())
        properties |= {key: True for key in sorted(required) if key not in properties}
        names = [key for key, part in properties.items() if part is not False]
        rules = [f"{rule}_{number}" for number in range(len(names))]
        body = " ".join(one + ("" if key in required else "?") for one, key in zip(rules, names)) or r'"\n"'
        begin, end = "\n" + CALL + function + '">', "\n" + END_CALL
        yield f"{rule}: {self._joined_terminals(begin)} {body} {self._joined_terminals(end)}"
        for one, key in zip(rules, names):
            more: list[str] = []
            values = [
                self._value_terminals(f"{one}_{number}", kind, value, schema, more)
                for number, (kind, value) in enumerate(_value_kinds(properties[key], schema, set()))
            ]
            tag = "\n" + PARAMETER + key + '" string="'
            yield f"{one}: {self._joined_terminals(tag)} ({' | '.join(values)})"
            yield from more

    def _value_terminals(self, rule: str, kind: str, value: Any, root: Mapping[str, Any], more: list[str]) -> str:
        """Return the Lark terminals of one kind of value, up to the end tag. Further Lark rules are appended to `more`."""
        if kind == "one":
            string = "true" if isinstance(value, str) else "false"
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            if restore_token_names(DSML) not in text:
                return self._joined_terminals(f'{string}">{text}{END_PARAMETER}')
            # llguidance would require the special token for this text, so the rule allows any value, and validation decides.
            kind, value = ("text" if string == "true" else "json"), {}
        if kind == "json":
            schema = {**value, **{holder: root[holder] for holder in HOLDERS if holder in root}}
            more.append(f"{rule}: %json {json.dumps({**schema, 'x-guidance': dict(self.options)})}")
            return " ".join([self._joined_terminals('false">'), rule, self._joined_terminals(END_PARAMETER)])
        # The regular expression includes the text before the next special token, because the lexer is greedy.
        close, *rest = self.spelled(END_PARAMETER)
        most = int(value.get("maxLength", MAX_LENGTH + 1))
        length = f"{{{int(value.get('minLength', 0))},{most if most <= MAX_LENGTH else ''}}}"
        text = f"/(?s:.{length})/" + ("" if self.has_token else f" & ~/(?s:.*){restore_token_names(DSML)}(?s:.*)/")
        terminal = f"TEXT_{rule}".upper()
        more.append(f"{terminal}: ({text}) {close}")
        return " ".join([self._joined_terminals('true">'), terminal, *rest])

    def _joined_terminals(self, text: str) -> str:
        return " ".join(self.spelled(text))


def _collect_parameters(part: Any, root: Mapping[str, Any], seen: set[str]) -> tuple[dict[str, Any], set[str]]:
    """Return the declared parameters of a function with their subschemas, and the names of the required parameters.

    `seen` holds the schema references that were already followed.
    """
    if not isinstance(part, dict):
        return {}, set()
    properties, required = dict(part.get("properties", {})), set(part.get("required", ()))
    for same, branch in _applied_subschemas(part, root, seen):
        more, needed = _collect_parameters(branch, root, seen)
        properties |= {key: value for key, value in more.items() if key not in properties}
        required |= needed if same else set()
    return properties, required


def _applied_subschemas(part: Mapping[str, Any], root: Mapping[str, Any], seen: set[str]) -> Iterator[tuple[bool, Any]]:
    """Yield (always, subschema) for each subschema that applies to the same value as `part`. `always` is False for branches of
    `anyOf` and `oneOf`. A schema reference is followed at most once."""
    pointer = part.get("$ref")
    if pointer is not None and pointer not in seen:
        seen.add(pointer)
        yield True, resolve_pointer(root, pointer)
    for keyword in ("allOf", "anyOf", "oneOf"):
        yield from ((keyword == "allOf", branch) for branch in part.get(keyword, ()) if branch is not False)


def _value_kinds(part: Any, root: Mapping[str, Any], seen: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield the kinds of values that the subschema `part` allows: ("one", value), ("text", schema of strings) or ("json",
    schema).

    `seen` holds the schema references that were already followed.
    """
    if not isinstance(part, dict):
        part = {}
    only = next((one for one in ("$ref", "anyOf", "oneOf") if one in part), None)
    if "const" in part:
        yield "one", part["const"]
    elif "enum" in part:
        yield from (("one", value) for value in part["enum"])
    elif only is not None:
        siblings = {key: value for key, value in part.items() if key != only}
        for _, branch in _applied_subschemas({only: part[only]}, root, seen):
            yield from _value_kinds({**siblings, **branch} if isinstance(branch, dict) else siblings, root, seen)
    else:
        named = part.get("type", ["string", *_VALUE_TYPES])
        types = [named] if isinstance(named, str) else named
        if "string" in types:
            yield "text", part
        if others := [kind for kind in types if kind != "string"]:
            yield "json", {"type": others} if _REFERENCE.search(json.dumps(part)) else {**part, "type": others}


def resolve_pointer(schema: Any, pointer: str) -> Any:
    """Return the target of a pointer such as `#/$defs/a`, or None if there is no such target."""
    for step in pointer.split("/")[1:]:
        step = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list) and step.isdecimal() and int(step) < len(schema):
            schema = schema[int(step)]
        elif isinstance(schema, dict) and step in schema:
            schema = schema[step]
        else:
            return None
    return schema if pointer.startswith(("#/", "#")) and pointer[1:2] in ("", "/") else None
