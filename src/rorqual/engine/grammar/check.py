"""Validate finished answers with the optional package jsonschema-rs, for keywords that the grammar cannot enforce.

A regular expression may backtrack at most `BACKTRACKS` steps. Nothing is downloaded, because all references stay within
the schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rorqual.core.errors import ConfigError, DataError
from rorqual.engine.grammar.automaton import translate
from rorqual.engine.grammar.formats import CHECKED
from rorqual.engine.grammar.refs import NAMED, VALUES, shown

BACKTRACKS = 100_000
MISMATCH = "the answer does not match the JSON schema"
"""Beginning of the error message for a finished answer that violates its schema."""
_DROPPED = ("$id", "$anchor", "$dynamicAnchor", "$schema", "$vocabulary", "dependencies", "additionalItems", "format")


class SchemaValidator:
    """Validates answers against one schema. All references in the schema are pointers (`grammar.refs.settle`)."""

    def __init__(self, schema: dict[str, Any]) -> None:
        try:
            import jsonschema_rs
        except ImportError:
            raise ConfigError(
                "checking finished answers against this JSON schema needs jsonschema-rs, which is not installed",
                where="engine",
                remedy='Run: pip install "rorqual[serve]"',
            ) from None
        options = jsonschema_rs.FancyRegexOptions(backtrack_limit=BACKTRACKS)
        readable: dict[str, str] = {}

        def expression(pattern: str) -> str:
            if pattern not in readable:
                readable[pattern] = _readable(jsonschema_rs, pattern)
            return readable[pattern]

        try:
            self._validator = jsonschema_rs.Draft202012Validator(
                _current(schema, expression), validate_formats=True, pattern_options=options
            )
        except (ValueError, jsonschema_rs.ValidationError) as error:
            raise DataError(
                f"the JSON schema is invalid: {shown(str(error).splitlines()[0])}",
                remedy="Correct the schema so that it follows JSON Schema 2020-12.",
            ) from None

    def fault(self, text: str) -> str:
        """Return an error that names the violated keyword and its place in the schema, or "" if the answer matches."""
        try:
            answer = json.loads(text)
            error = next(iter(self._validator.iter_errors(answer)), None)
        except (ValueError, RecursionError) as failed:
            return f"{MISMATCH}: it cannot be checked ({shown(str(failed))})"
        if error is None:
            return ""
        path = [str(step) for step in error.schema_path]
        place = "/".join(["#", *map(shown, path[:-1])])
        instance = shown(json.dumps(error.instance, ensure_ascii=False))
        return f"{MISMATCH}: {(path or ['false'])[-1]!r} at {place} does not hold for {instance}"


def _readable(library: Any, pattern: str) -> str:
    """Return a regular expression that the validator can parse: `pattern`, or the translation of `pattern` if the
    translation is exact."""
    try:
        library.Draft202012Validator({"pattern": pattern})
        return pattern
    except (ValueError, library.ValidationError):
        translated = translate(pattern)
        if not translated.exact or len(translated.expressions) != 1:
            raise DataError(
                f"the JSON schema uses the 'pattern' {shown(pattern)}, which can neither be enforced nor checked",
                remedy="Write the pattern in ECMA-262 syntax, without references to named groups.",
            ) from None
        return translated.expressions[0].replace("(?s:.)", r"[\s\S]").replace("\\x{", "\\u{")


def _current(part: Any, expression: Any) -> Any:
    """Convert a subschema to draft 2020-12. `$id`, anchors and all formats except those in `CHECKED` are removed."""
    if isinstance(part, list):
        return [_current(item, expression) for item in part]
    if not isinstance(part, dict):
        return part
    converted: dict[str, Any] = {}
    for key, value in part.items():
        if key == "format" and value in CHECKED:
            converted[key] = value
        elif key == "pattern" and isinstance(value, str):
            converted[key] = expression(value)
        elif key == "patternProperties" and isinstance(value, dict):
            converted[key] = {expression(name): _current(item, expression) for name, item in value.items()}
        elif key in NAMED and isinstance(value, dict):
            converted[key] = {name: _current(item, expression) for name, item in value.items()}
        elif key not in _DROPPED:
            converted[key] = value if key in VALUES else _current(value, expression)
    _modern(part, converted, expression)
    return converted


def _modern(part: Mapping[str, Any], converted: dict[str, Any], expression: Any) -> None:
    """Convert the keywords of drafts 4 to 7 that have another name or form in draft 2020-12."""
    if isinstance(part.get("items"), list):
        converted["prefixItems"] = converted.pop("items") or [True]
        if "additionalItems" in part:
            converted["items"] = _current(part["additionalItems"], expression)
    for name, dependency in part.get("dependencies", {}).items() if isinstance(part.get("dependencies"), dict) else ():
        kind = "dependentRequired" if isinstance(dependency, list) else "dependentSchemas"
        converted[kind] = {
            **converted.get(kind, {}),
            name: dependency if isinstance(dependency, list) else _current(dependency, expression),
        }
    for opened, closed in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(converted.get(opened), bool) and converted.pop(opened) and closed in converted:
            converted[opened] = converted.pop(closed)
