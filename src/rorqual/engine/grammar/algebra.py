"""Combine syntax-tree nodes of regular expressions. This module adds two kinds of nodes to those of `grammar.pattern`:
intersections `("and", nodes)` and complements `("not", node)`."""

from __future__ import annotations

from rorqual.engine.grammar.pattern import ANY, Node, ranges

NONE: Node = ("set", ())
ALL: Node = ("rep", ("set", ANY), 0, None)


def cat(*parts: Node) -> Node:
    """Return the concatenation of nodes."""
    found = list[Node]()
    for part in parts:
        found += part[1] if part[0] == "cat" else [part]
    if NONE in found:
        return NONE
    return found[0] if len(found) == 1 else ("cat", tuple(found))


def _flat(kind: str, parts: tuple[Node, ...]) -> list[Node]:
    found = dict[Node, None]()
    for part in parts:
        found.update(dict.fromkeys(part[1] if part[0] == kind else [part]))
    return list(found)


def alt(*branches: Node) -> Node:
    """Return the union of nodes."""
    found = [branch for branch in _flat("alt", branches) if branch != NONE]
    if ALL in found:
        return ALL
    sets = [branch for branch in found if branch[0] == "set"]
    if len(sets) > 1:
        found = [
            ("set", ranges(*(span for one in sets for span in one[1]))),
            *(one for one in found if one[0] != "set"),
        ]
    if len(found) < 2:
        return found[0] if found else NONE
    return "alt", tuple(sorted(found, key=repr))


def both(*parts: Node) -> Node:
    """Return the intersection of nodes."""
    found = [part for part in _flat("and", parts) if part != ALL]
    if NONE in found:
        return NONE
    if len(found) < 2:
        return found[0] if found else ALL
    return "and", tuple(sorted(found, key=repr))


def complement(node: Node) -> Node:
    """Return the complement of a node."""
    if node in (NONE, ALL):
        return NONE if node == ALL else ALL
    return node[1] if node[0] == "not" else ("not", node)


def nullable(node: Node) -> bool:
    """Return whether the node matches the empty string."""
    match node[0]:
        case "cat" | "and":
            return all(map(nullable, node[1]))
        case "alt":
            return any(map(nullable, node[1]))
        case "rep":
            return node[2] == 0 or nullable(node[1])
        case "not":
            return not nullable(node[1])
    return False
