"""Rewrite string and number keywords of JSON schemas for llguidance (see `grammar.rewrite`)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rorqual.core.errors import DataError
from rorqual.engine.grammar import numbers as grammar_numbers
from rorqual.engine.grammar.automaton import translate
from rorqual.engine.grammar.formats import CHECKED, EXPRESSIONS, LIBRARY
from rorqual.engine.grammar.pattern import Unreadable
from rorqual.engine.grammar.refs import resolve, shown

MAX_BRANCHES, MAX_WAYS = 24, 32
MAX_LEAST = 10_000
"""Largest supported value of `minLength`, `minItems` and `minProperties`. In practice, replies have fewer characters
and items."""
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
STRINGS = ("pattern", "format", "minLength", "maxLength", "contentEncoding")
NUMBERS = (*grammar_numbers.BOUNDS, "multipleOf")
ARRAYS = ("prefixItems", "items", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains", "minContains", "maxContains",
          "unevaluatedItems")  # fmt: skip
OBJECTS = ("properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties", "propertyNames",
           "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties")  # fmt: skip
OF_TYPE = {"string": STRINGS, "number": NUMBERS, "array": ARRAYS, "object": OBJECTS}
BINDING = frozenset(
    {"type", "const", "enum", "$ref", "allOf", "anyOf", "oneOf", "not", "if", "then", "else"}.union(*OF_TYPE.values())
) - {"contentEncoding"}
Part = dict[str, Any] | bool


@dataclass
class Texts:
    """Rewrites string and number keywords. Base class of `Rewriter`, which also holds the state of a rewrite."""

    root: dict[str, Any]
    """The schema to rewrite."""
    dead: frozenset[int] = frozenset()
    """`id()` of each subschema that no value matches."""
    loose: frozenset[str] = frozenset()
    """Keywords to leave out, because llguidance rejected them. The name `branches` disables rewrites that add branches
    to the schema."""
    checked: list[tuple[str, str]] = field(default_factory=list)
    """(keyword, place) of every constraint that the grammar does not enforce. Finished answers are validated against
    these constraints."""

    ways: int = 1
    """Number of branch combinations of the current subschema, including added branches. llguidance expands all
    combinations."""
    shared: dict[str, Part] = field(default_factory=dict)

    def _reserve_branches(self, count: int) -> bool:
        """Reserve `count` branches for a rewrite.

        Returns False if the rewrite would give too many combinations. For a rewrite with too many combinations, the
        caller drops the keyword, and finished answers are validated.
        """
        if "branches" in self.loose or self.ways * count > MAX_WAYS:
            return False
        self.ways *= count
        return True

    def _each(self, schema: Mapping[Any, Any], place: str) -> dict[Any, Part]:
        """Rewrite sibling subschemas.

        Each sibling has its own number of branch combinations. `ways` becomes the largest of these numbers, not their
        product.
        """
        before, most, rewritten = self.ways, self.ways, dict[Any, Part]()
        for name, subschema in schema.items():
            self.ways = before
            rewritten[name] = self.part(subschema, f"{place}/{shown(str(name))}")
            most = max(most, self.ways)
        self.ways = most
        return rewritten

    @abstractmethod
    def part(self, schema: Any, place: str) -> Part:
        """Rewrite a subschema and everything below it. Returns False if no value can match the subschema."""

    def _note(self, keyword: str, place: str) -> None:
        self.checked.append((keyword, place))

    def _resolve(self, pointer: str) -> Any:
        return resolve(self.root, pointer)

    def _string(
        self, schema: dict[str, Any], place: str, rewritten: dict[str, Any], extra: list[Part], _: frozenset[str]
    ) -> bool:
        for keyword in ("minLength", "maxLength"):
            if keyword in schema:
                rewritten[keyword] = count_of(schema[keyword], keyword, place)
        if rewritten.get("minLength", 0) > rewritten.get("maxLength", MAX_LEAST):
            return False
        expressions = self._expressions(schema, place)
        if "format" in schema and schema["format"] in LIBRARY and "format" not in self.loose:
            rewritten["format"] = schema["format"]
        if expressions:
            rewritten["pattern"] = expressions[0]
            extra += [{"pattern": one} for one in expressions[1:]]
        return True

    def _expressions(self, schema: Mapping[str, Any], place: str) -> list[str]:
        """Return regular expressions for a string schema. A string must match each of them."""
        expressions = list[str]()
        if "pattern" in schema:
            expressions += self._pattern(schema["pattern"], "pattern", place)
        named = schema.get("format")
        encoding = schema.get("contentEncoding")
        if named in EXPRESSIONS:
            expressions.append(f"^(?:{EXPRESSIONS[str(named)]})$")
        elif named in CHECKED or ("format" in self.loose and named in LIBRARY):
            self._note("format", place)
        if encoding in ("base64", "base64url"):
            expressions.append(f"^(?:{EXPRESSIONS[encoding]})$")
        return expressions

    def _pattern(self, pattern: Any, keyword: str, place: str) -> list[str]:
        if not isinstance(pattern, str):
            raise DataError(
                f"the {keyword!r} at {place} in the JSON schema is not a string",
                remedy="Give an ECMA-262 regular expression.",
            )
        try:
            translated = translate(pattern)
        except Unreadable as error:
            raise DataError(
                f"the {keyword!r} at {place} in the JSON schema cannot be read as an ECMA-262 regular expression: {error}",
                remedy="Correct the pattern. docs/how-to/serve.md lists the supported syntax.",
            ) from None
        if "pattern" in self.loose:
            self._note(keyword, place)
            return []
        if not translated.exact:
            self._note(keyword, place)
        return list(translated.expressions)

    def _number(
        self, schema: dict[str, Any], place: str, rewritten: dict[str, Any], extra: list[Part], types: frozenset[str]
    ) -> bool:
        named = schema.get("type", ())
        integer = "integer" in named and "number" not in named if isinstance(named, list) else named == "integer"
        numbers = grammar_numbers.rewritten(schema, integer)
        if numbers.none:
            return False
        rewritten |= numbers.keys
        for keyword in numbers.checked:
            self._note(keyword, place)
        steps = numbers.steps
        if "multipleOf" in self.loose and steps:
            self._note("multipleOf", place)
        elif len(steps) == 1:
            rewritten["multipleOf"] = steps[0]
        elif steps:
            kind = {"type": named} if named else {}
            extra.append({"anyOf": [{**kind, "multipleOf": step} for step in steps]})
        return True


def applies(schema: dict[str, Any]) -> bool:
    """Return whether a subschema has a keyword that applies other subschemas to the same value."""
    return any(
        keyword in schema
        for keyword in ("allOf", "anyOf", "oneOf", "$ref", "if", "not", "dependentSchemas", "dependencies")
    )


def binds(part: dict[str, Any], *but: str) -> bool:
    """Return whether a subschema has a constraining keyword that is not in `but`."""
    return any(keyword in BINDING and keyword not in but for keyword in part)


def count_of(value: Any, keyword: str, place: str) -> int:
    """Return the value of a keyword such as `minItems`.

    Raises DataError if the value is not an integer of 0 or more, or if a minimum is above `MAX_LEAST`.
    """
    if not grammar_numbers.number(value) or value < 0 or int(value) != value:
        raise DataError(
            f"the {keyword!r} at {place} in the JSON schema is {shown(repr(value))}",
            remedy="Give a whole number, 0 or more.",
        )
    if keyword.startswith("min") and value > MAX_LEAST:
        raise DataError(
            f"the '{keyword}' at {place} in the JSON schema is above {MAX_LEAST}", remedy="Lower the value."
        )
    return int(value)
