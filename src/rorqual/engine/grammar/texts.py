"""Rewrite the keywords of JSON schemas for strings and numbers for llguidance (see `grammar.rewrite`)."""

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
"""Largest value of a minimum: no reply has more characters, items or properties."""
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
    """Rewrites string and number keywords, and holds the state of a rewrite."""

    root: dict[str, Any]
    """The schema to rewrite."""
    dead: frozenset[int] = frozenset()
    """Ids of parts that no value matches."""
    loose: frozenset[str] = frozenset()
    """Keywords to leave out because llguidance rejected them. `branches` stands for rewrites that add branches to the
    schema."""
    checked: list[tuple[str, str]] = field(default_factory=list)
    """Keyword and place of everything that is not enforced, so that the answer must be checked."""

    ways: int = 1
    """Number of branch combinations of the part being rewritten, counting added branches. llguidance multiplies them
    out."""
    shared: dict[str, Part] = field(default_factory=dict)

    def _multiply(self, count: int) -> bool:
        """Return whether a part may be rewritten with `count` branches, and count them. If not, the answer is checked."""
        if "branches" in self.loose or self.ways * count > MAX_WAYS:
            return False
        self.ways *= count
        return True

    def _each(self, given: Mapping[Any, Any], place: str) -> dict[Any, Part]:
        """Rewrite sibling parts, whose branch combinations do not multiply each other."""
        before, most, found = self.ways, self.ways, dict[Any, Part]()
        for name, one in given.items():
            self.ways = before
            found[name] = self.part(one, f"{place}/{shown(str(name))}")
            most = max(most, self.ways)
        self.ways = most
        return found

    @abstractmethod
    def part(self, given: Any, place: str) -> Part:
        """Rewrite a part and everything below it."""

    def _note(self, keyword: str, place: str) -> None:
        self.checked.append((keyword, place))

    def _resolve(self, pointer: str) -> Any:
        return resolve(self.root, pointer)

    def _string(
        self, given: dict[str, Any], place: str, found: dict[str, Any], extra: list[Part], _: frozenset[str]
    ) -> bool:
        for keyword in ("minLength", "maxLength"):
            if keyword in given:
                found[keyword] = count_of(given[keyword], keyword, place)
        if found.get("minLength", 0) > found.get("maxLength", MAX_LEAST):
            return False
        expressions = self._expressions(given, place)
        if "format" in given and given["format"] in LIBRARY and "format" not in self.loose:
            found["format"] = given["format"]
        if expressions:
            found["pattern"] = expressions[0]
            extra += [{"pattern": one} for one in expressions[1:]]
        return True

    def _expressions(self, given: Mapping[str, Any], place: str) -> list[str]:
        """Return the expressions that a string must match, all of them."""
        found = list[str]()
        if "pattern" in given:
            found += self._pattern(given["pattern"], "pattern", place)
        named = given.get("format")
        encoding = given.get("contentEncoding")
        if named in EXPRESSIONS:
            found.append(f"^(?:{EXPRESSIONS[str(named)]})$")
        elif named in CHECKED or ("format" in self.loose and named in LIBRARY):
            self._note("format", place)
        if encoding in ("base64", "base64url"):
            found.append(f"^(?:{EXPRESSIONS[encoding]})$")
        return found

    def _pattern(self, pattern: Any, keyword: str, place: str) -> list[str]:
        if not isinstance(pattern, str):
            raise DataError(
                f"the {keyword!r} at {place} in the JSON schema is not a string",
                remedy="Give an ECMA-262 regular expression.",
            )
        try:
            done = translate(pattern)
        except Unreadable as error:
            raise DataError(
                f"the {keyword!r} at {place} in the JSON schema cannot be read as an ECMA-262 regular expression: {error}",
                remedy="Correct it. docs/how-to/serve.md lists the supported syntax.",
            ) from None
        if "pattern" in self.loose:
            self._note(keyword, place)
            return []
        if not done.exact:
            self._note(keyword, place)
        return list(done.expressions)

    def _number(
        self, given: dict[str, Any], place: str, found: dict[str, Any], extra: list[Part], types: frozenset[str]
    ) -> bool:
        named = given.get("type", ())
        integer = "integer" in named and "number" not in named if isinstance(named, list) else named == "integer"
        numbers = grammar_numbers.rewritten(given, integer)
        if numbers.none:
            return False
        found |= numbers.keys
        for keyword in numbers.checked:
            self._note(keyword, place)
        steps = numbers.steps
        if "multipleOf" in self.loose and steps:
            self._note("multipleOf", place)
        elif len(steps) == 1:
            found["multipleOf"] = steps[0]
        elif steps:
            kind = {"type": named} if named else {}
            extra.append({"anyOf": [{**kind, "multipleOf": step} for step in steps]})
        return True


def applies(given: dict[str, Any]) -> bool:
    """Return whether a part has a keyword that applies other parts to the same value."""
    return any(
        keyword in given
        for keyword in ("allOf", "anyOf", "oneOf", "$ref", "if", "not", "dependentSchemas", "dependencies")
    )


def binds(part: dict[str, Any], *but: str) -> bool:
    """Return whether a part has a keyword that constrains values, other than those in `but`."""
    return any(keyword in BINDING and keyword not in but for keyword in part)


def count_of(value: Any, keyword: str, place: str) -> int:
    """Return the value of a counting keyword. Raises DataError unless it is a whole number from 0, and a minimum not
    too large."""
    if not grammar_numbers.number(value) or value < 0 or int(value) != value:
        raise DataError(
            f"the {keyword!r} at {place} in the JSON schema is {shown(repr(value))}",
            remedy="Give a whole number, 0 or more.",
        )
    if keyword.startswith("min") and value > MAX_LEAST:
        raise DataError(f"the JSON schema asks for {keyword} above {MAX_LEAST} at {place}", remedy="Lower it.")
    return int(value)
