"""Convert llguidance's errors to error messages for users."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rorqual.core.errors import DataError
from rorqual.engine.grammar.source import find_cause
from rorqual.engine.request import Grammar

KINDS: Mapping[str, str] = {
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "choice": "list of choices",
    "json": "grammar",
    "calls": "set of functions",
}
NOTHING = "no token can follow"


class Unusable(Exception):
    """Raised if llguidance rejects a grammar. The exception has llguidance's own message."""

    @property
    def nothing(self) -> bool:
        """Whether llguidance rejected the grammar because no reply matches it."""
        return matches_nothing(str(self))


def matches_nothing(error: str) -> bool:
    """Return whether an error of llguidance means that no reply matches."""
    error = first_line(error)
    return "nsatisfiable" in error or "NoExtension" in error or error == NOTHING


def refusal(grammar: Grammar, error: str) -> DataError:
    """Return llguidance's error as a DataError that names the keyword and its place in the schema."""
    kind, error = KINDS[grammar.kind], first_line(error)
    if matches_nothing(error):
        has_detail = "nsatisfiable" in error and grammar.kind == "json_schema"
        detail = f": {error.split('Regex is empty')[0].strip(': ')}" if has_detail else ""
        if "Regex is empty" in error:
            detail = ": no string satisfies its 'pattern', 'format', 'const' and length together"
        return DataError(f"no reply can match the {kind}{detail}", remedy="Allow at least one reply.")
    if grammar.kind == "json_schema" and (cause := find_cause(grammar.source, error)) is not None:
        return DataError(
            f"the {kind} uses {cause[0]!r} at {cause[1]}, which cannot be enforced: {error}",
            remedy="Remove the keyword and check the reply yourself. docs/how-to/serve.md lists the supported keywords.",
        )
    remedy = "Correct it. docs/how-to/serve.md lists the supported keywords and the size limits."
    return DataError(f"the {kind} cannot be used: {error}", remedy=remedy)


def first_line(error: str) -> str:
    """Return the message of an llguidance error, cut to 200 characters. Parser state, grammar text and position markers
    are removed."""
    lines = [line.strip() for line in re.split("<state>|<non-verbose/>", error)[0].splitlines()]
    message = " ".join(line for line in lines if line.strip("^|") and not re.match(r"\d+ \|", line))
    if "invalid regex" in message:
        message = re.split(r"\(in regex\): |(?<!parse )error: ", message)[-1]
    return message[:200]
