"""Rewrite JSON schemas for llguidance.

Every subschema is rebuilt from its constraining keywords, in their original order. A keyword that llguidance does not
support is replaced by equivalent keywords, if such keywords exist. A keyword without an equivalent is dropped and
recorded, and finished answers are validated (`grammar.check`). Grammar and validation together enforce the whole
schema.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rorqual.core.errors import DataError
from rorqual.engine.grammar.negate import TYPES, NotExpressible, negate
from rorqual.engine.grammar.objects import Objects
from rorqual.engine.grammar.refs import escaped, shown
from rorqual.engine.grammar.texts import BINDING, MAX_LEAST, OF_TYPE, Part, applies, count_of
from rorqual.engine.grammar.unique import MAX_VALUES, arrangements, values_of


class Rewriter(Objects):
    """Rewrites one schema."""

    def whole(self) -> Part:
        """Rewrite the whole schema with its definitions. Returns False if no value can match the schema."""
        defs: dict[str, dict[str, Any]] = {}
        for holder in ("$defs", "definitions"):
            definitions = self.root.get(holder)
            if isinstance(definitions, dict):
                defs[holder] = self._each(definitions, f"#/{holder}")
        self.ways = 1
        rewritten = self.part(self.root, "#")
        if self.shared:
            defs["$defs"] = {**defs.get("$defs", {}), **self.shared}
        impossible = {
            f"#/{holder}/{escaped(name)}"
            for holder, definitions in defs.items()
            for name, part in definitions.items()
            if part is False
        }
        if impossible:
            rewritten = without(rewritten, impossible)
            defs = {
                holder: {name: without(part, impossible) for name, part in definitions.items()}
                for holder, definitions in defs.items()
            }
        if isinstance(rewritten, bool):
            return rewritten
        return {
            **rewritten,
            **{
                holder: {n: p for n, p in definitions.items() if p is not False} for holder, definitions in defs.items()
            },
        }

    def part(self, schema: Any, place: str) -> Part:
        """Rewrite a subschema and everything below it. Returns False if no value can match the subschema."""
        if not isinstance(schema, dict):
            if not isinstance(schema, bool):
                raise DataError(
                    f"the value at {place} in the JSON schema is not a schema",
                    remedy='Give an object such as {"type": "string"}, or true.',
                )
            return schema
        if id(schema) in self.dead:
            return False
        types = self._types(schema, place)
        rewritten, extra, did = dict[str, Any](), list[Part](), set[str]()
        for keyword in schema:
            kind = next((name for name, keywords in OF_TYPE.items() if keyword in keywords), None)
            if kind is None:
                if keyword in BINDING:
                    self._apply(keyword, schema, place, rewritten, extra)
            elif kind in types and kind not in did:
                did.add(kind)
                if getattr(self, f"_{kind}")(schema, place, rewritten, extra, types) is False:
                    types = types - {kind}
                    if not types:
                        return False
                    rewritten["type"] = _named(types, schema)
        return _together(rewritten, extra)

    def _types(self, schema: dict[str, Any], place: str) -> frozenset[str]:
        """Return the types that a subschema allows. `integer` is returned as `number`."""
        named = schema.get("type", list(TYPES))
        listed = [named] if isinstance(named, str) else named
        if not isinstance(listed, list) or not set(map(str, listed)) <= {*TYPES, "integer"}:
            raise DataError(
                f"the 'type' at {place} in the JSON schema is {shown(str(named))}, which is not a type",
                remedy="Use string, number, integer, boolean, null, array or object.",
            )
        return frozenset("number" if name == "integer" else name for name in listed)

    # ---- keywords for all types

    def _apply(
        self, keyword: str, schema: dict[str, Any], place: str, rewritten: dict[str, Any], extra: list[Part]
    ) -> None:
        value = schema[keyword]
        if keyword in ("allOf", "anyOf", "oneOf"):
            if not isinstance(value, list) or not value:
                raise DataError(
                    f"the {keyword!r} at {place} in the JSON schema is not a list of schemas",
                    remedy="List at least one schema.",
                )
            branches = [self.part(subschema, f"{place}/{keyword}/{number}") for number, subschema in enumerate(value)]
            self._branches(keyword, value, branches, place, rewritten, extra)
        elif keyword == "not":
            self._contrary(value, f"{place}/not", extra, lambda: self._note("not", place))
        elif keyword == "if":
            self._condition(schema, place, extra)
        elif keyword == "enum" and not isinstance(value, list):
            raise DataError(f"the 'enum' at {place} in the JSON schema is not a list", remedy="List the values.")
        elif keyword not in ("then", "else"):
            rewritten[keyword] = value

    def _branches(
        self,
        keyword: str,
        schema: list[Any],
        branches: list[Part],
        place: str,
        rewritten: dict[str, Any],
        extra: list[Part],
    ) -> None:
        if keyword != "oneOf" or ("oneOf" not in self.loose and True not in branches and {} not in branches):
            rewritten[keyword] = branches
            return
        try:  # rewrite `oneOf` as `anyOf` whose branches exclude each other
            if not self._reserve_branches(len(branches)):
                raise NotExpressible
            others = [self._negated(subschema, place) for subschema in schema]
            apart = [
                {"allOf": [branch, *others[:number], *others[number + 1 :]]} for number, branch in enumerate(branches)
            ]
            extra.append({"anyOf": apart})
        except NotExpressible:
            self._note("oneOf", place)
            extra.append({"anyOf": branches})

    def _negated(self, part: Any, place: str) -> Part:
        return self.part(negate(part, self._resolve, lambda keyword: keyword not in BINDING), place)

    def _contrary(self, part: Any, place: str, extra: list[Part], otherwise: Callable[[], None]) -> None:
        try:
            extra.append(self._negated(part, place))
        except NotExpressible:
            otherwise()

    def _condition(self, schema: dict[str, Any], place: str, extra: list[Part]) -> None:
        then, other = schema.get("then", True), schema.get("else", True)
        if then is True and other is True:
            return
        try:
            if not self._reserve_branches(2):
                raise NotExpressible
            extra.append({"anyOf": [
                {"allOf": [self.part(schema["if"], f"{place}/if"), self.part(then, f"{place}/then")]},
                {"allOf": [self._negated(schema["if"], f"{place}/if"), self.part(other, f"{place}/else")]},
            ]})  # fmt: skip
        except NotExpressible:
            self._note("if", place)

    # ---- arrays

    def _array(
        self, schema: dict[str, Any], place: str, rewritten: dict[str, Any], extra: list[Part], _: frozenset[str]
    ) -> bool:
        prefix_items, items = schema.get("prefixItems"), schema.get("items", True)
        if isinstance(items, list):  # draft 7 lists the schemas of the first items in `items`, not in `prefixItems`
            prefix_items, items = items, schema.get("additionalItems", True)
        if isinstance(prefix_items, list) and prefix_items:
            name = "items" if isinstance(schema.get("items"), list) else "prefixItems"
            rewritten["prefixItems"] = list(self._each(dict(enumerate(prefix_items)), f"{place}/{name}").values())
        if (
            items is True
            and schema.get("unevaluatedItems") is False
            and not applies(schema)
            and "contains" not in schema
        ):
            items = False
        elif schema.get("unevaluatedItems", True) is not True:
            self._note("unevaluatedItems", place)
        if items is not True:
            rewritten["items"] = self.part(items, f"{place}/items")
        for keyword in ("minItems", "maxItems"):
            if keyword in schema:
                rewritten[keyword] = count_of(schema[keyword], keyword, place)
        if rewritten.get("minItems", 0) > rewritten.get("maxItems", MAX_LEAST):
            return False
        if "contains" in schema and not (schema["contains"] is True and schema.get("minContains", 1) == 0):
            self._note("contains", place)
        if schema.get("uniqueItems") is True and rewritten.get("maxItems", 2) > 1:
            self._unique(items, place, rewritten, extra)
        return True

    def _unique(self, items: Any, place: str, rewritten: dict[str, Any], extra: list[Part]) -> None:
        """Rewrite `uniqueItems`. If few values are allowed, enumerate all arrays. If the arrays cannot be enumerated,
        finished answers are validated."""
        values = None if "prefixItems" in rewritten or "uniqueItems" in self.loose else values_of(items, self._resolve)
        if values is not None and len(values) <= MAX_VALUES:
            lists = arrangements(values, rewritten.get("minItems", 0), rewritten.get("maxItems", len(values)))
            if lists is not None:
                extra.append({"anyOf": [{"type": [name for name in TYPES if name != "array"]}, {"enum": lists}]})
                return
        self._note("uniqueItems", place)


def _named(types: frozenset[str], schema: dict[str, Any]) -> list[str]:
    named = schema.get("type", list(TYPES))
    listed = [named] if isinstance(named, str) else named
    return [name for name in listed if ("number" if name == "integer" else name) in types]


def _together(rewritten: dict[str, Any], extra: list[Part]) -> Part:
    """Return one subschema that requires `rewritten` and all of `extra`."""
    extra = [part for part in extra if part is not True and part != {}]
    if any(part is False for part in extra):
        return False
    if len(extra) == 1 and isinstance(extra[0], dict) and not extra[0].keys() & rewritten.keys():
        return {**rewritten, **extra[0]}
    if extra:
        rewritten["allOf"] = [*rewritten.pop("allOf", []), *extra]
    return rewritten


def without(part: Any, impossible: set[str]) -> Any:
    """Return the subschema with references to `impossible` definitions replaced by `false`."""
    if isinstance(part, list):
        return [without(one, impossible) for one in part]
    if not isinstance(part, dict):
        return part
    if part.get("$ref") in impossible:
        return False
    return {
        key: value if key in ("const", "enum", "required") else without(value, impossible)
        for key, value in part.items()
    }
