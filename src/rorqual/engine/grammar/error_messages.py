"""Convert errors of llguidance and jsonschema-rs to error messages for users."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rorqual.core.errors import DataError
from rorqual.core.sampling import GrammarKind
from rorqual.engine.grammar.trial_process import NOTHING

KINDS: Mapping[GrammarKind, str] = {
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "choice": "list of choices",
    "json": "grammar",
    "calls": "set of functions",
}


def grammar_error(kind: GrammarKind, error: str, function: str = "") -> DataError:
    """Return an error of llguidance or jsonschema-rs as a DataError. `function` names the function whose parameters caused the
    error."""
    name, error = KINDS["json_schema" if function else kind], clean_library_error(error)
    start = f"the parameters of {function!r}: " if function else ""
    if "nsatisfiable" in error or "NoExtension" in error or error == NOTHING:
        return DataError(f"{start}no reply can match the {name}: {error}", remedy="Allow at least one reply.")
    remedy = "Simplify it, or remove what is not supported. docs/reference/http.md lists the supported keywords."
    return DataError(f"{start}the {name} cannot be used: {error}", remedy=remedy)


def clean_library_error(error: str) -> str:
    """Return the message of an llguidance error, cut to 200 characters, without parser state, grammar text and position
    markers."""
    lines = [line.strip() for line in re.split("<state>|<non-verbose/>", error)[0].splitlines()]
    message = " ".join(line for line in lines if line.strip("^|") and not re.match(r"\d+ \|", line))
    if "invalid regex" in message:
        message = re.split(r"\(in regex\): |(?<!parse )error: ", message)[-1]
    return message[:200]
