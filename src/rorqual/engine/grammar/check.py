"""Finished answers against what a grammar could not enforce of their JSON schema. By jsonschema-rs, an optional package.

Its expressions backtrack no more than `BACKTRACKS` steps, and nothing is fetched: all references are within the schema.
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
"""How the error of an answer begins that ended and does not match."""
_DROPPED = ("$id", "$anchor", "$dynamicAnchor", "$schema", "$vocabulary", "dependencies", "additionalItems", "format")


class Judge:
    """Judges the answers of one schema, whose references are pointers (`grammar.refs.settle`)."""

    def __init__(self, schema: dict[str, Any]) -> None:
        try:
            import jsonschema_rs
        except ImportError:
            raise ConfigError(
                "this JSON schema is checked after the answer, which needs jsonschema-rs, and that is not installed",
                where="engine",
                remedy='pip install "rorqual[serve]"',
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
                f"the JSON schema is none: {shown(str(error).splitlines()[0])}",
                remedy="Correct it by JSON Schema 2020-12.",
            ) from None

    def fault(self, text: str) -> str:
        """Which keyword an answer does not match, and where that stands; empty where it matches."""
        try:
            answer = json.loads(text)
            error = next(iter(self._validator.iter_errors(answer)), None)
        except (ValueError, RecursionError) as failed:
            return f"{MISMATCH}: it cannot be checked ({shown(str(failed))})"
        if error is None:
            return ""
        path = [str(step) for step in error.schema_path]
        place = "/".join(["#", *map(shown, path[:-1])])
        return f"{MISMATCH}: {(path or ['false'])[-1]!r} at {place} does not hold of {shown(json.dumps(error.instance, ensure_ascii=False))}"


def _readable(library: Any, pattern: str) -> str:
    """A pattern as the validator reads it, or what it was translated to, where that is all of it."""
    try:
        library.Draft202012Validator({"pattern": pattern})
        return pattern
    except (ValueError, library.ValidationError):
        done = translate(pattern)
        if not done.exact or len(done.expressions) != 1:
            raise DataError(
                f"the JSON schema uses the 'pattern' {shown(pattern)}, which can neither be enforced nor checked",
                remedy="Write it as ECMA-262 has it, without references to named groups.",
            ) from None
        return done.expressions[0].replace("(?s:.)", r"[\s\S]").replace("\\x{", "\\u{")


def _current(part: Any, expression: Any) -> Any:
    """A part as draft 2020-12 writes it, without names of its own, and with the formats alone that are checked."""
    if isinstance(part, list):
        return [_current(one, expression) for one in part]
    if not isinstance(part, dict):
        return part
    found: dict[str, Any] = {}
    for key, value in part.items():
        if key == "format" and value in CHECKED:
            found[key] = value
        elif key == "pattern" and isinstance(value, str):
            found[key] = expression(value)
        elif key == "patternProperties" and isinstance(value, dict):
            found[key] = {expression(name): _current(one, expression) for name, one in value.items()}
        elif key in NAMED and isinstance(value, dict):
            found[key] = {name: _current(one, expression) for name, one in value.items()}
        elif key not in _DROPPED:
            found[key] = value if key in VALUES else _current(value, expression)
    _modern(part, found, expression)
    return found


def _modern(part: Mapping[str, Any], found: dict[str, Any], expression: Any) -> None:
    """What drafts 4 to 7 write otherwise."""
    if isinstance(part.get("items"), list):
        found["prefixItems"] = found.pop("items") or [True]
        if "additionalItems" in part:
            found["items"] = _current(part["additionalItems"], expression)
    for name, asked in part.get("dependencies", {}).items() if isinstance(part.get("dependencies"), dict) else ():
        kind = "dependentRequired" if isinstance(asked, list) else "dependentSchemas"
        found[kind] = {**found.get(kind, {}), name: asked if isinstance(asked, list) else _current(asked, expression)}
    for opened, closed in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(found.get(opened), bool) and found.pop(opened) and closed in found:
            found[opened] = found.pop(closed)
