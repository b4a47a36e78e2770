"""Find subschemas of a JSON schema that require themselves in a cycle. No finite value matches a subschema that
requires itself, so generation would never end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

TYPES = ("null", "boolean", "number", "string", "object", "array")
NEEDS = ("required", "minItems", "minProperties")
Node = tuple[str, int, str]
"""A node of the dependency graph: (kind, id of the subschema, type). A node is true if a finite matching value exists.

The kind `value` means a value of the node's type, and `any` means a value of any type. The kind `some` means a value
that matches at least one of several subschemas.
"""


def find_endless(schema: dict[str, Any], resolve: Callable[[Any, str], Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return (keyword, place, subschema) for each reachable subschema that requires itself and so has no finite value.

    Subschemas with a keyword in `NEEDS` come first. `resolve(schema, pointer)` returns the target of a reference. The
    check ignores some conditions that a matching value must meet. So it may miss a subschema, but no value matches a
    returned subschema. Subschemas that are impossible without a cycle (`false`, contradicting types) are not returned.
    """
    parts = dict(_reachable(schema, resolve))
    if not any("$ref" in part for part in parts.values()):
        return []
    graph = _Graph(schema, resolve)
    node_of = {place: graph.add("any", part) for place, part in parts.items()}
    provable, refuted = graph.settle("and"), graph.settle("or")
    cycles = [place for place, node in node_of.items() if node not in provable and node not in refuted]
    endless = [
        (next((name for name in NEEDS if name in parts[place]), "$ref"), place, parts[place]) for place in cycles
    ]
    return sorted(endless, key=lambda cycle: cycle[0] == "$ref")


def _reachable(schema: Any, resolve: Callable[[Any, str], Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, subschema) for every subschema that may apply to some value, starting at the root."""
    queue, seen = deque([("#", schema)]), set[int]()
    while queue:
        place, part = queue.popleft()
        if id(part) in seen or not isinstance(part, dict):
            continue
        seen.add(id(part))
        yield place, part
        types = _types(part)
        if "object" in types and part.get("maxProperties") != 0:
            for name in ("properties", "patternProperties"):
                queue += [(f"{place}/{name}/{key}", subschema) for key, subschema in _mapping(part.get(name)).items()]
            queue.append((f"{place}/additionalProperties", part.get("additionalProperties")))
        for name in ("anyOf", "oneOf", "allOf"):
            queue += [(f"{place}/{name}/{number}", subschema) for number, subschema in enumerate(_list(part.get(name)))]
        if "array" in types:
            queue += _elements(place, part)
        if isinstance(part.get("$ref"), str):
            queue.append((part["$ref"], resolve(schema, part["$ref"])))


def _elements(place: str, part: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (place, subschema) for every subschema that may apply to the first `maxItems` items of an array."""
    max_items, items = part.get("maxItems"), part.get("items")
    most = max_items if isinstance(max_items, int | float) else float("inf")
    name = "prefixItems" if "prefixItems" in part else "items"
    listed = _list(part.get(name))
    yield from ((f"{place}/{name}/{number}", subschema) for number, subschema in enumerate(listed) if number < most)
    if most > len(listed):
        rest_name = "additionalItems" if isinstance(items, list) else "items"
        yield f"{place}/{rest_name}", part.get(rest_name)


class _Graph:
    """An AND-OR graph: a `Node` is the conjunction or the disjunction of the nodes that it depends on."""

    def __init__(self, schema: Any, resolve: Callable[[Any, str], Any]) -> None:
        self._schema, self._resolve = schema, resolve
        self._alive: list[Any] = []  # keeps subschemas alive, so that their ids are not reused
        self._dependencies: dict[Node, tuple[str, list[Node]]] = {}
        self._todo: list[tuple[Node, Any]] = []

    def add(self, what: str, part: Any, type_: str = "") -> Node:
        """Add a node and all nodes that it depends on."""
        node = self._ask(what, part, type_)
        while self._todo:
            known, about = self._todo.pop()
            self._dependencies[known] = self._answer(known, about)
        return node

    def _ask(self, what: str, part: Any, type_: str = "") -> Node:
        node = (what, id(part), type_)
        if node not in self._dependencies:
            self._alive.append(part)
            self._dependencies[node] = "and", []
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
        dependencies = [self._ask("value", one, type_) for one in _list(part.get("allOf"))]
        dependencies += [self._ask("some", part[name], type_) for name in ("anyOf", "oneOf") if _list(part.get(name))]
        if isinstance(part.get("$ref"), str):
            dependencies.append(self._ask("value", self._resolve(self._schema, part["$ref"]), type_))
        needed = _members(part) if type_ == "object" else _items(part) if type_ == "array" else []
        return "and", [
            *dependencies,
            *(self._ask("some", one) if isinstance(one, list) else self._ask("any", one) for one in needed),
        ]

    def settle(self, kind: str) -> set[Node]:
        """If `kind` is "and", return the nodes that are provably true. If `kind` is "or", return the nodes that are
        provably false.

        A node in a cycle may be neither provably true nor provably false.
        """
        open_count = {
            node: len(dependencies) if joined == kind else 1
            for node, (joined, dependencies) in self._dependencies.items()
        }
        dependents: dict[Node, list[Node]] = {node: [] for node in self._dependencies}
        for node, (_, dependencies) in self._dependencies.items():
            for dependency in dependencies:
                dependents[dependency].append(node)
        ready = [
            node for node, (joined, dependencies) in self._dependencies.items() if joined == kind and not dependencies
        ]
        settled = set(ready)
        while ready:
            for node in dependents[ready.pop()]:
                open_count[node] -= 1
                if open_count[node] <= 0 and node not in settled:
                    settled.add(node)
                    ready.append(node)
        return settled


def _members(part: dict[str, Any]) -> list[Any]:
    """Return the subschemas that properties of an object must match. A list in the result means that a property must
    match at least one subschema of the list."""
    named, patterns = _mapping(part.get("properties")), _mapping(part.get("patternProperties"))
    others = part.get("additionalProperties", True)
    required = [name for name in _list(part.get("required")) if isinstance(name, str)]
    needed = [named.get(name, True if patterns else others) for name in required]
    if not required and _least(part, "minProperties"):
        needed.append([*named.values(), *patterns.values(), others])
    return needed


def _items(part: dict[str, Any]) -> list[Any]:
    """Return the subschemas that the first `minItems` items of an array must match."""
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
