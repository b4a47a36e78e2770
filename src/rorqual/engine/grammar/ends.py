"""Find parts of a JSON schema without a finite value: parts that require each other in a cycle would be generated
without end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

TYPES = ("null", "boolean", "number", "string", "object", "array")
NEEDS = ("required", "minItems", "minProperties")
Node = tuple[str, int, str]
"""A question about a part: (kind, id of the part, type).

Each asks whether a finite value exists. `value` asks for a value of this type, `any` for one of any type, and `some`
for one that matches at least one of several parts.
"""


def find_endless(schema: dict[str, Any], resolve: Callable[[Any, str], Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return the reachable parts that require themselves and so have no finite value, as (keyword, place, part).

    Parts with a keyword of `NEEDS` come first. `resolve(schema, pointer)` returns the target of a reference. Only
    necessary conditions are checked, so a part that is found has no value for certain. Parts that are impossible for
    other reasons (`false`, contradicting types) are not found.
    """
    parts = dict(_reachable(schema, resolve))
    if not any("$ref" in part for part in parts.values()):
        return []
    graph = _Graph(schema, resolve)
    asked = {place: graph.add("any", part) for place, part in parts.items()}
    alive, dead = graph.settle("and"), graph.settle("or")
    rings = [place for place, node in asked.items() if node not in alive and node not in dead]
    found = [(next((name for name in NEEDS if name in parts[place]), "$ref"), place, parts[place]) for place in rings]
    return sorted(found, key=lambda ring: ring[0] == "$ref")


def _reachable(schema: Any, resolve: Callable[[Any, str], Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, part) for every part that some value may have to match, starting at the root."""
    waiting, seen = deque([("#", schema)]), set[int]()
    while waiting:
        place, part = waiting.popleft()
        if id(part) in seen or not isinstance(part, dict):
            continue
        seen.add(id(part))
        yield place, part
        types = _types(part)
        if "object" in types and part.get("maxProperties") != 0:
            for name in ("properties", "patternProperties"):
                waiting += [(f"{place}/{name}/{key}", below) for key, below in _mapping(part.get(name)).items()]
            waiting.append((f"{place}/additionalProperties", part.get("additionalProperties")))
        for name in ("anyOf", "oneOf", "allOf"):
            waiting += [(f"{place}/{name}/{number}", below) for number, below in enumerate(_list(part.get(name)))]
        if "array" in types:
            waiting += _elements(place, part)
        if isinstance(part.get("$ref"), str):
            waiting.append((part["$ref"], resolve(schema, part["$ref"])))


def _elements(place: str, part: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (place, part) for the parts that array items may have to match, up to `maxItems`."""
    given, items = part.get("maxItems"), part.get("items")
    most = given if isinstance(given, int | float) else float("inf")
    name = "prefixItems" if "prefixItems" in part else "items"
    first = _list(part.get(name))
    yield from ((f"{place}/{name}/{number}", below) for number, below in enumerate(first) if number < most)
    if most > len(first):
        rest = "additionalItems" if isinstance(items, list) else "items"
        yield f"{place}/{rest}", part.get(rest)


class _Graph:
    """A graph of questions (`Node`). The answer to a question is the conjunction or disjunction of the answers to other
    questions."""

    def __init__(self, schema: Any, resolve: Callable[[Any, str], Any]) -> None:
        self._schema, self._resolve = schema, resolve
        self._kept: list[Any] = []  # keeps parts alive, so that no id is reused
        self._below: dict[Node, tuple[str, list[Node]]] = {}
        self._todo: list[tuple[Node, Any]] = []

    def add(self, what: str, part: Any, type_: str = "") -> Node:
        """Add a question and all questions that its answer depends on."""
        node = self._ask(what, part, type_)
        while self._todo:
            known, about = self._todo.pop()
            self._below[known] = self._answer(known, about)
        return node

    def _ask(self, what: str, part: Any, type_: str = "") -> Node:
        node = (what, id(part), type_)
        if node not in self._below:
            self._kept.append(part)
            self._below[node] = "and", []
            self._todo.append((node, part))
        return node

    def _answer(self, node: Node, part: Any) -> tuple[str, list[Node]]:
        what, _, type_ = node
        if what == "any":
            return "or", [self._ask("value", part, one) for one in TYPES]
        if what == "some":
            return "or", [self._ask("value" if type_ else "any", one, type_) for one in part]
        if not isinstance(part, dict):
            return ("or" if part is False else "and"), []
        if type_ not in _types(part):
            return "or", []
        below = [self._ask("value", one, type_) for one in _list(part.get("allOf"))]
        below += [self._ask("some", part[name], type_) for name in ("anyOf", "oneOf") if _list(part.get(name))]
        if isinstance(part.get("$ref"), str):
            below.append(self._ask("value", self._resolve(self._schema, part["$ref"]), type_))
        needed = _members(part) if type_ == "object" else _items(part) if type_ == "array" else []
        return "and", [
            *below,
            *(self._ask("some", one) if isinstance(one, list) else self._ask("any", one) for one in needed),
        ]

    def settle(self, kind: str) -> set[Node]:
        """Return the nodes that are certainly true (`kind` "and") or certainly false (`kind` "or") in finitely many
        steps."""
        left = {node: len(below) if joined == kind else 1 for node, (joined, below) in self._below.items()}
        above: dict[Node, list[Node]] = {node: [] for node in self._below}
        for node, (_, below) in self._below.items():
            for one in below:
                above[one].append(node)
        ready = [node for node, (joined, below) in self._below.items() if joined == kind and not below]
        settled = set(ready)
        while ready:
            for node in above[ready.pop()]:
                left[node] -= 1
                if left[node] <= 0 and node not in settled:
                    settled.add(node)
                    ready.append(node)
        return settled


def _members(part: dict[str, Any]) -> list[Any]:
    """Return the parts that an object must have. A list stands for parts of which it must have at least one."""
    named, patterns = _mapping(part.get("properties")), _mapping(part.get("patternProperties"))
    others = part.get("additionalProperties", True)
    required = [name for name in _list(part.get("required")) if isinstance(name, str)]
    needed = [named.get(name, True if patterns else others) for name in required]
    if not required and _least(part, "minProperties"):
        needed.append([*named.values(), *patterns.values(), others])
    return needed


def _items(part: dict[str, Any]) -> list[Any]:
    """Return the parts that an array must have."""
    least, items = _least(part, "minItems"), part.get("items", True)
    first = _list(part.get("prefixItems")) or _list(items)
    rest = part.get("additionalItems", True) if isinstance(items, list) else items
    return [*first[:least], *([rest] if least > len(first) else [])]


def _types(part: dict[str, Any]) -> set[str]:
    given = part.get("type")
    names = set(TYPES) if given is None else {given} if isinstance(given, str) else {str(one) for one in _list(given)}
    names = {"number" if name == "integer" else name for name in names}
    if "const" in part:
        names &= {_type_of(part["const"])}
    if isinstance(part.get("enum"), list):
        names &= {_type_of(value) for value in part["enum"]}
    return names


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    known = {type(None): "null", int: "number", float: "number", str: "string", dict: "object", list: "array"}
    return known[type(value)]


def _least(part: dict[str, Any], name: str) -> int:
    least = part.get(name)
    return max(0, int(least)) if isinstance(least, int | float) else 0


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
