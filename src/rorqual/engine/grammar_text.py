"""A grammar as llguidance reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from rorqual.engine.grammar_refusal import Unusable
from rorqual.engine.grammar_source import check_pattern, choice_pattern
from rorqual.engine.request import Grammar

WHITESPACE = r"\n[ ]{0,16}|[ ]"
"""Between the parts of a JSON text at most one of these: a small model that may go on with blanks goes on without end."""
JSON: Mapping[str, Any] = {"whitespace_pattern": WHITESPACE, "lenient": False, "coerce_one_of": False}
ESCAPES = 'nrbtf"\\'
"""What may follow a backslash in a text. Not `u`: a name written with it would be another to the grammar, and escape what is said of it."""
CONTROL = re.compile(r"\\u00(?:[01]|7[fF])|\x7f")


def options_of(*schemas: str) -> dict[str, Any]:
    """How texts of JSON are written; where a schema names a control character, which has no other spelling, with `\\u`, too."""
    return dict(JSON) if any(map(CONTROL.search, schemas)) else {**JSON, "json_allowed_escapes": ESCAPES}


def written(library: Any, grammar: Grammar) -> str:
    """A grammar other than of a schema or of calls; a `DataError` says what is wrong with what was sent."""
    if grammar.kind == "json":
        return schema_text(library, {"type": "object"})
    pattern = choice_pattern(grammar.source) if grammar.kind == "choice" else check_pattern(grammar.source)
    return str(library.LLMatcher.grammar_from_regex(pattern))


def schema_text(library: Any, part: Mapping[str, Any]) -> str:
    """A schema that was written for llguidance (`grammar_source.rewrite`)."""
    text = json.dumps(part)
    try:
        return str(library.LLMatcher.grammar_from_json_schema(text, overrides=options_of(text)))
    except ValueError as error:  # such as a whole number of 400 digits
        raise Unusable(str(error)) from None
