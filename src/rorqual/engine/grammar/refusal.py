"""What llguidance says against a grammar, in a user's words."""

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
    """What llguidance says against a grammar, as it says it."""

    @property
    def nothing(self) -> bool:
        """Whether it says that no reply matches."""
        return matches_nothing(str(self))


def matches_nothing(error: str) -> bool:
    """Whether llguidance says that no reply matches."""
    error = first_line(error)
    return "nsatisfiable" in error or "NoExtension" in error or error == NOTHING


def refusal(grammar: Grammar, error: str) -> DataError:
    """What llguidance says, in a user's words: which keyword, and where in the schema it stands."""
    kind, error = KINDS[grammar.kind], first_line(error)
    if matches_nothing(error):
        known = "nsatisfiable" in error and grammar.kind == "json_schema"
        detail = f": {error.split('Regex is empty')[0].strip(': ')}" if known else ""
        if "Regex is empty" in error:
            detail = ": a text cannot match all that 'pattern', 'format', 'const' or its length ask of it"
        return DataError(f"the {kind} is matched by no reply{detail}", remedy="Allow at least one.")
    if grammar.kind == "json_schema" and (cause := find_cause(grammar.source, error)) is not None:
        return DataError(
            f"the {kind} uses {cause[0]!r} at {cause[1]}, which cannot be enforced: {error}",
            remedy="Take it out, and check the reply yourself; docs/serve.md says what can be enforced.",
        )
    remedy = "Correct it; docs/serve.md says what can be enforced and how large it may be."
    return DataError(f"the {kind} cannot be used: {error}", remedy=remedy)


def first_line(error: str) -> str:
    """The problem, without the state of the parser, the grammar and the drawings of the place that come with it."""
    lines = [line.strip() for line in re.split("<state>|<non-verbose/>", error)[0].splitlines()]
    whole = " ".join(line for line in lines if line.strip("^|") and not re.match(r"\d+ \|", line))
    if "invalid regex" in whole:
        whole = re.split(r"\(in regex\): |(?<!parse )error: ", whole)[-1]
    return whole[:200]
