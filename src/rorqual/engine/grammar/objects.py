"""Rewrite object keywords of JSON schemas for llguidance (see `grammar.rewrite`)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from math import prod
from typing import Any

from rorqual.core.errors import DataError
from rorqual.engine.grammar.refs import escaped, shown
from rorqual.engine.grammar.texts import BINDING, MAX_BRANCHES, STRINGS, Part, Texts, applies, binds, count_of
from rorqual.engine.grammar.unique import values_of

MAX_NAMES, MAX_INLINE = 256, 4


class Objects(Texts):
    """Rewrites object keywords. Base class of `Rewriter`."""

    def _object(
        self, schema: dict[str, Any], place: str, rewritten: dict[str, Any], extra: list[Part], _: frozenset[str]
    ) -> bool:
        named = schema.get("properties", {})
        if not isinstance(named, dict):
            raise DataError(
                f"'properties' at {place} in the JSON schema is not an object", remedy='Give {"name": {...}}.'
            )
        properties = self._each(named, f"{place}/properties")
        patterns = self._patterns(schema, place)
        others: Part = self.part(schema.get("additionalProperties", True), f"{place}/additionalProperties")
        others = self._unevaluated(schema, place, properties, patterns, others)
        required = [name for name in schema.get("required", []) if isinstance(name, str)]
        names = self._names(schema.get("propertyNames", True), place)
        if names is not None:
            properties, patterns, others = self._named_alone(names, properties, patterns, others, place)
            if isinstance(others, bool) and not others and not set(required) <= set(properties) and not patterns:
                return False
        if properties:
            rewritten["properties"] = properties
        if patterns:
            rewritten["patternProperties"] = patterns
        if others is not True:
            rewritten["additionalProperties"] = others
        if required:
            rewritten["required"] = required
        self._sizes(schema, place, rewritten, extra, required)
        self._dependent(schema, place, extra)
        return True

    def _patterns(self, schema: dict[str, Any], place: str) -> dict[str, Part]:
        rewritten: dict[str, Part] = {}
        value = schema.get("patternProperties", {})
        for pattern, subschema in value.items() if isinstance(value, dict) else ():
            expressions = self._pattern(pattern, "patternProperties", place)
            rewritten_part = self.part(subschema, f"{place}/patternProperties/{shown(pattern)}")
            if "patternProperties" in self.loose or len(expressions) != 1 or expressions[0] in rewritten:
                self._note("patternProperties", place)
            else:
                rewritten[expressions[0]] = rewritten_part
        return rewritten

    def _unevaluated(
        self, schema: dict[str, Any], place: str, properties: dict[str, Part], patterns: dict[str, Part], others: Part
    ) -> Part:
        if schema.get("unevaluatedProperties", True) is True or "additionalProperties" in schema:
            return others
        if not applies(schema):
            return self.part(schema["unevaluatedProperties"], f"{place}/unevaluatedProperties")
        names, certain = self._evaluated(schema, 0)
        if not certain:
            self._note("unevaluatedProperties", place)
        if names is None or schema["unevaluatedProperties"] is not False:
            if certain:
                self._note("unevaluatedProperties", place)
            return others
        for name in names:
            properties.setdefault(name, True)
        return False

    def _evaluated(self, part: Any, depth: int) -> tuple[list[str] | None, bool]:
        """Return the names of the properties that a subschema evaluates. The second value is True if the subschema
        always evaluates all these properties.

        Names from nested subschemas for the same object, such as those in `allOf`, are included. None instead of a list
        means that any property may be evaluated.
        """
        if not isinstance(part, dict) or depth > MAX_BRANCHES:
            return ([], True) if isinstance(part, bool) else (None, False)
        if part.get("patternProperties") or (depth and part.get("additionalProperties", False) is not False):
            return None, False
        names, certain = list(part.get("properties", {})), True
        applied = [*part.get("allOf", []), *([self._resolve(part["$ref"])] if "$ref" in part else [])]
        chosen = [subschema for keyword in ("anyOf", "oneOf") for subschema in part.get(keyword, [])]
        chosen += [part[keyword] for keyword in ("if", "then", "else") if keyword in part]
        chosen += list(part.get("dependentSchemas", {}).values())
        for subschema in (*applied, *chosen):
            more, sure = self._evaluated(subschema, depth + 1)
            if more is None:
                return None, False
            names, certain = [*names, *more], certain and sure
        return names, certain and not chosen

    def _names(self, part: Any, place: str) -> list[str] | str | None:
        """Return the allowed property names as a list or a regular expression.

        None means that all names are allowed, or that the keyword is checked by validating finished answers.
        """
        for _ in range(MAX_BRANCHES):
            if not (isinstance(part, dict) and isinstance(part.get("$ref"), str) and not binds(part, "$ref")):
                break
            part = self._resolve(part["$ref"])
        if part is True or (isinstance(part, dict) and not any(keyword in BINDING for keyword in part)):
            return None
        values = [] if part is False else values_of(part, self._resolve)
        if values is not None and len(values) <= MAX_NAMES:
            return [value for value in values if isinstance(value, str)]
        if isinstance(part, dict) and part.get("type", "string") == "string" and not binds(part, "type", *STRINGS):
            expressions = self._expressions(part, f"{place}/propertyNames")
            least, most = part.get("minLength", 0), part.get("maxLength")
            if not expressions and part.get("format") is None and "pattern" not in part:
                return f"^(?s:.){{{int(least)},{'' if most is None else int(most)}}}$"
            if len(expressions) == 1:
                if least or most is not None:
                    self._note("propertyNames", place)
                return expressions[0]
        self._note("propertyNames", place)
        return None

    def _named_alone(
        self, names: list[str] | str, properties: dict[str, Part], patterns: dict[str, Part], others: Part, place: str
    ) -> tuple[dict[str, Part], dict[str, Part], Part]:
        """Restrict properties, pattern properties and additional properties to the allowed `names`."""
        if patterns:
            self._note("propertyNames", place)
            return properties, patterns, others
        if isinstance(names, list):
            if len(names) > MAX_INLINE and not isinstance(others, bool):
                pointer = f"names of {len(self.shared)}"
                self.shared[pointer], others = others, {"$ref": f"#/$defs/{escaped(pointer)}"}
            return {name: properties.get(name, others) for name in names}, {}, False
        if properties:
            self._note("propertyNames", place)
            return properties, patterns, others
        return {}, {names: others}, False

    def _sizes(
        self, schema: dict[str, Any], place: str, rewritten: dict[str, Any], extra: list[Part], required: list[str]
    ) -> None:
        """Rewrite `minProperties` and `maxProperties`."""
        counts = {key: count_of(schema[key], key, place) for key in ("minProperties", "maxProperties") if key in schema}
        least, most = max(0, counts.get("minProperties", 0) - len(required)), counts.get("maxProperties")
        optional = [
            name
            for name, subschema in rewritten.get("properties", {}).items()
            if name not in required and subschema is not False
        ]
        free = rewritten.get("additionalProperties", True) is not False or "patternProperties" in rewritten
        if not free and most is not None and most >= len(required) + len(optional):
            most = None
        if optional and (least or most is not None):
            branches = None if free else self._chosen(optional, least, None if most is None else most - len(required))
            if branches is None:
                for key in counts:
                    self._note(key, place)
            extra += branches or []
            return
        for key, count in counts.items():
            if (key == "minProperties" and not least) or (key == "maxProperties" and most is None):
                continue
            if key not in self.loose:
                rewritten[key] = count
            # llguidance may generate the same unlisted name twice, so it guarantees only one distinct unlisted property.
            if key in self.loose or (key == "minProperties" and free and least > 1):
                self._note(key, place)

    def _chosen(self, optional: list[str], least: int, most: int | None) -> list[Part] | None:
        """Return subschemas that together require `least` to `most` of the `optional` properties. Return None if this
        needs too many branches. The caller must ensure that the object allows no other properties.
        """
        if len(optional) > MAX_BRANCHES:
            return None
        limits = list[Part]()
        if least:
            some = [{"required": list(names)} for names in _first(combinations(optional, least))]
            limits.append({"anyOf": some} if some else False)
        if most is not None:
            allowed = _first(combinations(optional, max(0, most)))
            limits.append(
                {
                    "anyOf": [
                        {"properties": {name: False for name in optional if name not in names}} for names in allowed
                    ]
                }
            )
        branches = [len(part["anyOf"]) for part in limits if isinstance(part, dict)]
        return limits if max(branches, default=0) <= MAX_BRANCHES and self._reserve_branches(prod(branches)) else None

    def _dependent(self, schema: dict[str, Any], place: str, extra: list[Part]) -> None:
        """Rewrite the keywords that apply only if the object has a certain property."""
        for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            value = schema.get(keyword, {})
            for name, dependency in value.items() if isinstance(value, dict) else ():
                if not self._reserve_branches(2):
                    self._note(keyword, place)
                    break
                with_name: dict[str, Any] = {"required": [name]}
                if isinstance(dependency, list):
                    with_name["required"] = [name, *dependency]
                else:
                    with_name = {"allOf": [with_name, self.part(dependency, f"{place}/{keyword}/{shown(name)}")]}
                extra.append({"anyOf": [{"properties": {name: False}}, with_name]})


def _first(items: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [item for item, _ in zip(items, range(MAX_BRANCHES + 1), strict=False)]
