"""Rewrite JSON schemas for llguidance.

Every part is rebuilt from its constraining keywords, in their order. A keyword that llguidance lacks is replaced by an
equivalent one, where that exists. Otherwise it is dropped and noted, and the finished answer is checked
(`grammar.check`). Generation and check together enforce the whole schema.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rorqual.core.errors import DataError
from rorqual.engine.grammar.negate import TYPES, Unsayable, negate
from rorqual.engine.grammar.objects import Objects
from rorqual.engine.grammar.refs import escaped, shown
from rorqual.engine.grammar.texts import BINDING, MAX_LEAST, OF_TYPE, Part, applies, count_of
from rorqual.engine.grammar.unique import MAX_VALUES, arrangements, values_of


class Rewriter(Objects):
    """Rewrites one schema."""

    def whole(self) -> Part:
        """Rewrite the whole schema with its definitions. Returns False if no value can match it."""
        defs: dict[str, dict[str, Any]] = {}
        for holder in ("$defs", "definitions"):
            held = self.root.get(holder)
            if isinstance(held, dict):
                defs[holder] = self._each(held, f"#/{holder}")
        self.ways = 1
        found = self.part(self.root, "#")
        if self.shared:
            defs["$defs"] = {**defs.get("$defs", {}), **self.shared}
        impossible = {
            f"#/{holder}/{escaped(name)}"
            for holder, held in defs.items()
            for name, part in held.items()
            if part is False
        }
        if impossible:
            found = without(found, impossible)
            defs = {
                holder: {name: without(part, impossible) for name, part in held.items()}
                for holder, held in defs.items()
            }
        if isinstance(found, bool):
            return found
        return {**found, **{holder: {n: p for n, p in held.items() if p is not False} for holder, held in defs.items()}}

    def part(self, given: Any, place: str) -> Part:
        """Rewrite a part and everything below it. Returns False if no value can match it."""
        if not isinstance(given, dict):
            if not isinstance(given, bool):
                raise DataError(
                    f"the value at {place} in the JSON schema is not a schema",
                    remedy='Give an object such as {"type": "string"}, or true.',
                )
            return given
        if id(given) in self.dead:
            return False
        types = self._types(given, place)
        found, extra, did = dict[str, Any](), list[Part](), set[str]()
        for keyword in given:
            kind = next((name for name, keywords in OF_TYPE.items() if keyword in keywords), None)
            if kind is None:
                if keyword in BINDING:
                    self._apply(keyword, given, place, found, extra)
            elif kind in types and kind not in did:
                did.add(kind)
                if getattr(self, f"_{kind}")(given, place, found, extra, types) is False:
                    types = types - {kind}
                    if not types:
                        return False
                    found["type"] = _named(types, given)
        return _together(found, extra)

    def _types(self, given: dict[str, Any], place: str) -> frozenset[str]:
        """Return the types that values may have. `integer` counts as number."""
        named = given.get("type", list(TYPES))
        listed = [named] if isinstance(named, str) else named
        if not isinstance(listed, list) or not set(map(str, listed)) <= {*TYPES, "integer"}:
            raise DataError(
                f"the 'type' at {place} in the JSON schema is {shown(str(named))}, which is not a type",
                remedy="Use string, number, integer, boolean, null, array or object.",
            )
        return frozenset("number" if name == "integer" else name for name in listed)

    # ---- keywords for all types

    def _apply(self, keyword: str, given: dict[str, Any], place: str, found: dict[str, Any], extra: list[Part]) -> None:
        value = given[keyword]
        if keyword in ("allOf", "anyOf", "oneOf"):
            if not isinstance(value, list) or not value:
                raise DataError(
                    f"the {keyword!r} at {place} in the JSON schema is not a list of schemas",
                    remedy="List at least one schema.",
                )
            branches = [self.part(one, f"{place}/{keyword}/{number}") for number, one in enumerate(value)]
            self._branches(keyword, value, branches, place, found, extra)
        elif keyword == "not":
            self._contrary(value, f"{place}/not", extra, lambda: self._note("not", place))
        elif keyword == "if":
            self._condition(given, place, extra)
        elif keyword == "enum" and not isinstance(value, list):
            raise DataError(f"the 'enum' at {place} in the JSON schema is not a list", remedy="List the values.")
        elif keyword not in ("then", "else"):
            found[keyword] = value

    def _branches(
        self, keyword: str, given: list[Any], branches: list[Part], place: str, found: dict[str, Any], extra: list[Part]
    ) -> None:
        if keyword != "oneOf" or ("oneOf" not in self.loose and True not in branches and {} not in branches):
            found[keyword] = branches
            return
        try:  # each branch without all others
            if not self._multiply(len(branches)):
                raise Unsayable
            others = [self._negated(one, place) for one in given]
            apart = [
                {"allOf": [branch, *others[:number], *others[number + 1 :]]} for number, branch in enumerate(branches)
            ]
            extra.append({"anyOf": apart})
        except Unsayable:
            self._note("oneOf", place)
            extra.append({"anyOf": branches})

    def _negated(self, part: Any, place: str) -> Part:
        return self.part(negate(part, self._resolve, lambda keyword: keyword not in BINDING), place)

    def _contrary(self, part: Any, place: str, extra: list[Part], otherwise: Callable[[], None]) -> None:
        try:
            extra.append(self._negated(part, place))
        except Unsayable:
            otherwise()

    def _condition(self, given: dict[str, Any], place: str, extra: list[Part]) -> None:
        then, other = given.get("then", True), given.get("else", True)
        if then is True and other is True:
            return
        try:
            if not self._multiply(2):
                raise Unsayable
            extra.append({"anyOf": [
                {"allOf": [self.part(given["if"], f"{place}/if"), self.part(then, f"{place}/then")]},
                {"allOf": [self._negated(given["if"], f"{place}/if"), self.part(other, f"{place}/else")]},
            ]})  # fmt: skip
        except Unsayable:
            self._note("if", place)

    # ---- arrays

    def _array(
        self, given: dict[str, Any], place: str, found: dict[str, Any], extra: list[Part], _: frozenset[str]
    ) -> bool:
        first, items = given.get("prefixItems"), given.get("items", True)
        if isinstance(items, list):  # the form of draft 7
            first, items = items, given.get("additionalItems", True)
        if isinstance(first, list) and first:
            name = "items" if isinstance(given.get("items"), list) else "prefixItems"
            found["prefixItems"] = list(self._each(dict(enumerate(first)), f"{place}/{name}").values())
        if items is True and given.get("unevaluatedItems") is False and not applies(given) and "contains" not in given:
            items = False
        elif given.get("unevaluatedItems", True) is not True:
            self._note("unevaluatedItems", place)
        if items is not True:
            found["items"] = self.part(items, f"{place}/items")
        for keyword in ("minItems", "maxItems"):
            if keyword in given:
                found[keyword] = count_of(given[keyword], keyword, place)
        if found.get("minItems", 0) > found.get("maxItems", MAX_LEAST):
            return False
        if "contains" in given and not (given["contains"] is True and given.get("minContains", 1) == 0):
            self._note("contains", place)
        if given.get("uniqueItems") is True and found.get("maxItems", 2) > 1:
            self._unique(items, place, found, extra)
        return True

    def _unique(self, items: Any, place: str, found: dict[str, Any], extra: list[Part]) -> None:
        """Rewrite `uniqueItems`: list all arrays if few values are allowed, else check the answer."""
        values = None if "prefixItems" in found or "uniqueItems" in self.loose else values_of(items, self._resolve)
        if values is not None and len(values) <= MAX_VALUES:
            lists = arrangements(values, found.get("minItems", 0), found.get("maxItems", len(values)))
            if lists is not None:
                extra.append({"anyOf": [{"type": [name for name in TYPES if name != "array"]}, {"enum": lists}]})
                return
        self._note("uniqueItems", place)


def _named(types: frozenset[str], given: dict[str, Any]) -> list[str]:
    named = given.get("type", list(TYPES))
    listed = [named] if isinstance(named, str) else named
    return [name for name in listed if ("number" if name == "integer" else name) in types]


def _together(found: dict[str, Any], extra: list[Part]) -> Part:
    """Return one part that requires `found` and all of `extra`."""
    extra = [part for part in extra if part is not True and part != {}]
    if any(part is False for part in extra):
        return False
    if len(extra) == 1 and isinstance(extra[0], dict) and not extra[0].keys() & found.keys():
        return {**found, **extra[0]}
    if extra:
        found["allOf"] = [*found.pop("allOf", []), *extra]
    return found


def without(part: Any, impossible: set[str]) -> Any:
    """Return the part with `false` in place of references to impossible definitions."""
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
