"""Reduce a schema that llguidance rejects: drop keywords that llguidance cannot enforce, and branches that no value
matches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rorqual.engine.grammar.refs import escaped
from rorqual.engine.grammar.refusal import Unusable, first_line, matches_nothing
from rorqual.engine.grammar.rewrite import without

MAX_TRIED = 64
SAYS: Mapping[str, tuple[str, ...]] = {
    "oneOf": ("oneOf",),
    "min/maxProperties": ("minProperties", "maxProperties"),
    "atternProperties": ("patternProperties",),
    "pattern properties": ("patternProperties",),
    "multipleOf": ("multipleOf",),
    "format": ("format",),
    "regex": ("pattern",),
    "too large": ("branches",),
    "too big": ("branches",),
    "symbols.len()": ("branches",),
}
"""Map fragments of llguidance's error messages to the keywords to drop."""


def loosened(error: str, loose: frozenset[str]) -> frozenset[str] | None:
    """Return `loose` (see `grammar.texts.Texts`) plus the keywords that an error names.

    Return None if the error names no keyword, or if `loose` already contains all named keywords.
    """
    if matches_nothing(error):
        return None
    error = first_line(error)
    keywords = next((names for words, names in SAYS.items() if words in error and not loose.issuperset(names)), None)
    return None if keywords is None else loose.union(keywords)


def pruned(part: dict[str, Any], error: str, impossible: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
    """Remove the impossible branches and definitions of a schema that llguidance rejected with `error`.

    `impossible(schema)` is true if no value matches the schema. Raises Unusable with the message `error` if no branch can
    be removed.
    """
    if not matches_nothing(error):
        raise Unusable(error)
    defs: dict[str, Any] = {name: part[name] for name in ("$defs", "definitions") if name in part}
    removed = 0
    for tried, (holder, key) in enumerate(_choices(part)):
        branch = holder[key]
        if tried >= MAX_TRIED:
            break
        if isinstance(branch, dict) and impossible({**branch, **defs}):
            holder[key] = False
            removed += 1
    if not removed:
        raise Unusable(error)
    removed_pointers = {
        f"#/{holder}/{escaped(name)}"
        for holder, definitions in defs.items()
        for name, branch in definitions.items()
        if branch is False
    }
    pruned_part = without(part, removed_pointers)
    if not isinstance(pruned_part, dict):
        raise Unusable(error)
    return pruned_part


def _choices(part: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every branch, definition and optional property that may be removed, innermost first."""
    if isinstance(part, list):
        for below in part:
            yield from _choices(below)
    elif isinstance(part, dict):
        for keyword, value in part.items():
            if keyword in ("const", "enum", "required"):
                continue
            if keyword in ("properties", "patternProperties", "$defs", "definitions"):
                for name, below in value.items():
                    yield from _choices(below)
                    if name not in part.get("required", ()) or keyword != "properties":
                        yield value, name
                continue
            yield from _choices(value)
            if keyword in ("anyOf", "oneOf"):
                yield from ((value, number) for number in range(len(value)))
