"""A grammar as llguidance reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from rorqual.engine.grammar_refusal import refusal
from rorqual.engine.grammar_source import check_pattern, choice_pattern, parse_schema
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
    """A grammar as llguidance reads it; a `DataError` says what is wrong with what was sent."""
    if grammar.kind in ("json_schema", "json"):
        text = '{"type":"object"}' if grammar.kind == "json" else json.dumps(parse_schema(grammar.source))
        try:
            return str(library.LLMatcher.grammar_from_json_schema(text, overrides=options_of(text)))
        except ValueError as error:  # such as a whole number of 400 digits
            raise refusal(grammar, str(error)) from None
    pattern = choice_pattern(grammar.source) if grammar.kind == "choice" else check_pattern(grammar.source)
    return str(library.LLMatcher.grammar_from_regex(pattern))
