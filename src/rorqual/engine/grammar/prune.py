"""Reduce a schema that llguidance rejects: drop keywords that it cannot enforce, and branches that no value matches."""

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
"""Fragments of llguidance's errors, and the keywords to drop for each."""


def loosened(error: str, loose: frozenset[str]) -> frozenset[str] | None:
    """Return `loose` (see `grammar.texts.Texts`) plus the keywords that an error names, or None if it names no new one."""
    if matches_nothing(error):
        return None
    error = first_line(error)
    more = next((names for words, names in SAYS.items() if words in error and not loose.issuperset(names)), None)
    return None if more is None else loose.union(more)


def pruned(part: dict[str, Any], error: str, impossible: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
    """Remove the impossible branches and definitions from a schema that llguidance says nothing matches.

    Raises Unusable with the same error if no branch is impossible.
    """
    if not matches_nothing(error):
        raise Unusable(error)
    defs: dict[str, Any] = {name: part[name] for name in ("$defs", "definitions") if name in part}
    found = 0
    for tried, (holder, key) in enumerate(_choices(part)):
        one = holder[key]
        if tried >= MAX_TRIED:
            break
        if isinstance(one, dict) and impossible({**one, **defs}):
            holder[key] = False
            found += 1
    if not found:
        raise Unusable(error)
    gone = {
        f"#/{holder}/{escaped(name)}" for holder, held in defs.items() for name, one in held.items() if one is False
    }
    pruned_part = without(part, gone)
    if not isinstance(pruned_part, dict):
        raise Unusable(error)
    return pruned_part


def _choices(part: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every branch, definition and optional property that may be removed, innermost first."""
    if isinstance(part, list):
        for one in part:
            yield from _choices(one)
    elif isinstance(part, dict):
        for keyword, value in part.items():
            if keyword in ("const", "enum", "required"):
                continue
            if keyword in ("properties", "patternProperties", "$defs", "definitions"):
                for name, one in value.items():
                    yield from _choices(one)
                    if name not in part.get("required", ()) or keyword != "properties":
                        yield value, name
                continue
            yield from _choices(value)
            if keyword in ("anyOf", "oneOf"):
                yield from ((value, number) for number in range(len(value)))
