"""Check finished answers against the parts of a JSON schema that the grammar cannot enforce, with the optional
jsonschema-rs.

Regular expressions backtrack at most `BACKTRACKS` steps. Nothing is fetched: all references are within the schema.
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
"""Start of the error of a finished answer that violates its schema."""
_DROPPED = ("$id", "$anchor", "$dynamicAnchor", "$schema", "$vocabulary", "dependencies", "additionalItems", "format")


class Judge:
    """Validates answers against one schema, whose references are pointers (`grammar.refs.settle`)."""

    def __init__(self, schema: dict[str, Any]) -> None:
        try:
            import jsonschema_rs
        except ImportError:
            raise ConfigError(
                "this JSON schema needs jsonschema-rs to check finished answers, but it is not installed",
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
                remedy="Correct it as JSON Schema 2020-12 requires.",
            ) from None

    def fault(self, text: str) -> str:
        """Return the keyword that an answer violates and its place, or "" if the answer matches."""
        try:
            answer = json.loads(text)
            error = next(iter(self._validator.iter_errors(answer)), None)
        except (ValueError, RecursionError) as failed:
            return f"{MISMATCH}: it cannot be checked ({shown(str(failed))})"
        if error is None:
            return ""
        path = [str(step) for step in error.schema_path]
        place = "/".join(["#", *map(shown, path[:-1])])
        found = shown(json.dumps(error.instance, ensure_ascii=False))
        return f"{MISMATCH}: {(path or ['false'])[-1]!r} at {place} does not hold for {found}"


def _readable(library: Any, pattern: str) -> str:
    """Return a pattern that the validator can read: the pattern itself, or its translation if that is exact."""
    try:
        library.Draft202012Validator({"pattern": pattern})
        return pattern
    except (ValueError, library.ValidationError):
        done = translate(pattern)
        if not done.exact or len(done.expressions) != 1:
            raise DataError(
                f"the JSON schema uses the 'pattern' {shown(pattern)}, which can neither be enforced nor checked",
                remedy="Write it in ECMA-262 syntax, without references to named groups.",
            ) from None
        return done.expressions[0].replace("(?s:.)", r"[\s\S]").replace("\\x{", "\\u{")


def _current(part: Any, expression: Any) -> Any:
    """Convert a part to draft 2020-12. Its `$id` and anchors are removed, and all formats except the checked ones."""
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
    """Convert keywords that drafts 4 to 7 write differently."""
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
