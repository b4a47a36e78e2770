"""Translate regular expressions of JSON schemas for llguidance. The translated expressions are anchored and have no
look-around. Their character classes are adapted to the escapes of JSON strings.

A look-ahead becomes an intersection: the rest of the string must match both the look-ahead and the rest of the pattern.
A negative look-ahead becomes an intersection with the complement (Brzozowski, Derivatives of regular expressions,
1964).

llguidance supports intersections but not complements. So a complement is converted to an automaton and back to an
expression. A construct is dropped if it cannot be converted, or if the resulting expression would be very long. If a
construct was dropped, the translation matches more strings than the pattern, and finished answers are validated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rorqual.engine.grammar.algebra import ALL, NONE, alt, both, cat, complement, nullable
from rorqual.engine.grammar.pattern import ANY, EMPTY, Node, PatternReader, Ranges, ranges, written_set

MAX_STATES, MAX_TEXT, MAX_UNROLLED, MAX_STEPS, MAX_SIZE = 48, 6000, 3, 4000, 2000
MAX_WRITTEN = 50_000
ESCAPED = ranges((8, 10), (12, 13))
"""Control characters with a two-character escape in JSON, such as a line feed."""
PRINTED = ranges((32, 126), (128, ANY[-1][1]))
ZERO_WIDTH = ("begin", "end", "look", "drop")


class TooLarge(Exception):
    """Raised if a translation needs too many states or would be too long."""


@dataclass(frozen=True)
class Translated:
    """The translation of a pattern into expressions. Each expression must match the whole string.

    `exact` is True if the expressions together match exactly the strings that the pattern matches. If False, the
    expressions match more strings than the pattern.
    """

    expressions: tuple[str, ...]
    exact: bool


def translate(pattern: str) -> Translated:
    """Translate a regular expression of a JSON schema. Such an expression may match anywhere in a string.

    Raises Unreadable if the expression cannot be parsed.
    """
    reader = PatternReader(pattern)
    node = reader.read()
    if _size(node, {}) > MAX_WRITTEN:
        return Translated((), False)
    assertions = _Assertions()
    try:
        translated = assertions.searched(node)
    except TooLarge:
        assertions.inexact = True
        translated = cat(ALL, _bare(node), ALL)
    exact = not (reader.inexact or assertions.inexact)
    written = list[str]()
    for part in translated[1] if translated[0] == "and" else (translated,):
        try:
            written.append(f"^(?:{_written(part) if _plain(part) else _Automaton(part).expression()})$")
        except TooLarge:
            exact = False
    return Translated(tuple(sorted(written)), exact)


def _size(node: Node, sizes: dict[int, int]) -> int:
    """Return the number of nodes in the tree, counting each back-reference as a copy of its group."""
    if id(node) not in sizes:
        children = (
            node[1]
            if node[0] in ("cat", "alt")
            else [part for part in node if isinstance(part, tuple) and node[0] != "set"]
        )
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in children)
    return sizes[id(node)]


def _check_size(node: Node) -> Node:
    """Return the node unchanged. Raises TooLarge if comparing the node with other nodes would take too long."""
    if _size(node, {}) > MAX_SIZE:
        raise TooLarge
    return node


class _Assertions:
    """Removes `^`, `$` and look-aheads from a pattern by turning them into conditions on the rest of the string."""

    def __init__(self) -> None:
        self.inexact, self._steps = False, 0

    def searched(self, node: Node) -> Node:
        """Return an expression for all strings in which `node` matches somewhere."""
        later = self.before(node, ALL, False)
        return alt(self.before(node, ALL, True), cat(("rep", ("set", ANY), 1, None), later))

    def before(self, node: Node, rest: Node, start: bool) -> Node:
        """Return an expression without assertions for `node` followed by `rest`.

        `rest` must have no assertions. `start` is True if the node is at the start of the string.
        """
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise TooLarge
        if not _asserts(node):
            return cat(node, rest)
        match node:
            case ("begin",):
                return rest if start else NONE
            case ("end",):
                return EMPTY if nullable(rest) else NONE
            case ("look", negative, body):
                condition = self.before(body, ALL, start)
                return both(_check_size(complement(condition) if negative else condition), _check_size(rest))
            case ("alt", branches):
                return _check_size(alt(*(self.before(branch, rest, start) for branch in branches)))
            case ("cat", parts):
                starts = [start and all(map(_empty, parts[:number])) for number in range(len(parts))]
                # `^` after a part that may be empty, as in a?^b, is not translated.
                self.inexact |= any(
                    start and not first and _begins(part) and all(map(nullable, map(_bare, parts[:number])))
                    for number, (part, first) in enumerate(zip(parts, starts, strict=True))
                )
                for part, first in zip(reversed(parts), reversed(starts), strict=True):
                    rest = self.before(part, rest, first)
                return rest
            case ("rep", body, least, most):
                return self._repeated(body, least, most, rest, start)
        return rest  # the node is ("drop",), which replaces a dropped assertion

    def _repeated(self, body: Node, least: int, most: int | None, rest: Node, start: bool) -> Node:
        if most is not None and most <= MAX_UNROLLED:
            branches = rest if least == 0 else NONE
            after = rest
            for count in range(1, most + 1):
                after = self.before(body, after, start and count == most)
                branches = alt(branches, _check_size(after)) if count >= least else branches
            return branches
        match body:
            case ("cat", (("look", True, unwanted), ("set", _) as one)) if rest == EMPTY and not nullable(
                _bare(unwanted)
            ):
                # (?:(?!unwanted).)*$ means that `unwanted` matches nowhere in the rest of the string
                return both(("rep", one, least, most), complement(cat(ALL, self.before(unwanted, ALL, False))))
        self.inexact = True
        return cat(("rep", _bare(body), least, most), rest)


def _asserts(node: Node) -> bool:
    match node[0]:
        case "cat" | "alt":
            return any(map(_asserts, node[1]))
        case "rep":
            return _asserts(node[1])
    return node[0] in ZERO_WIDTH


def _begins(node: Node) -> bool:
    """Return whether the node contains `^`."""
    match node[0]:
        case "cat" | "alt":
            return any(map(_begins, node[1]))
        case "rep":
            return _begins(node[1])
        case "look":
            return _begins(node[2])
    return bool(node[0] == "begin")


def _bare(node: Node) -> Node:
    """Return the node without its assertions. The result matches all strings that the node matches, and possibly other
    strings."""
    match node[0]:
        case "cat":
            return cat(*map(_bare, node[1]))
        case "alt":
            return alt(*map(_bare, node[1]))
        case "rep":
            return "rep", _bare(node[1]), *node[2:]
    return EMPTY if node[0] in ZERO_WIDTH else node


def _empty(node: Node) -> bool:
    """Return whether every match of the node is empty."""
    return node[0] in ZERO_WIDTH or (node[0] in ("cat", "alt") and all(map(_empty, node[1])))


def _plain(node: Node) -> bool:
    """Return whether the node has neither an intersection nor a complement."""
    if node[0] in ("cat", "alt"):
        return all(map(_plain, node[1]))
    return _plain(node[1]) if node[0] == "rep" else node[0] in ("set", "raw")


def _written(node: Node) -> str:
    """Return the expression in llguidance's syntax."""
    match node:
        case ("set", given):
            return _set(given)
        case ("raw", text):
            return str(text)
        case ("cat", parts):
            return "".join(_grouped(part) if part[0] == "alt" else _written(part) for part in parts)
        case ("alt", branches):
            return "|".join(map(_written, branches))
        case ("rep", body, least, most):
            counts = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((least, most))
            return _grouped(body) + (counts or f"{{{least},{'' if most is None else most}}}")
    raise AssertionError(node[0])


def _grouped(node: Node) -> str:
    return _written(node) if node[0] in ("set", "raw") else f"(?:{_written(node)})"


def _set(characters: Ranges) -> str:
    """Return a character class in llguidance's syntax.

    If a class contains all control characters but excludes `"` and `\\`, llguidance wrongly allows these two
    characters. So control characters without a two-character escape are removed from each class that lacks `"` or `\\`.
    The grammar usually allows no such control characters in a JSON string (see `compiler.ESCAPES`).
    """
    if characters == ANY:
        return "(?s:.)"
    if not (_holds(characters, 34) and _holds(characters, 92)):
        characters = ranges(*_shared(characters, PRINTED), *_shared(characters, ESCAPED))
    return f"[{written_set(characters)}]" if characters else r"[^\s\S]"


def _holds(characters: Ranges, code: int) -> bool:
    return any(low <= code <= high for low, high in characters)


def _shared(left: Ranges, right: Ranges) -> Iterator[tuple[int, int]]:
    for low, high in left:
        for lower, upper in right:
            if max(low, lower) <= min(high, upper):
                yield max(low, lower), min(high, upper)


# ---- from an automaton back to an expression


class _Automaton:
    """The automaton of a regular expression.

    Each state is a derivative: an expression for the rest of the string. Each edge is labelled with a character class.
    """

    def __init__(self, node: Node) -> None:
        if not _derivable(node):
            raise TooLarge
        self._numbers: dict[Node, int] = {node: 0}
        self._last: set[int] = set()
        self._left = MAX_STEPS
        self._steps: dict[tuple[int, int], Ranges] = {}
        classes, waiting = list(_partition(node)), [node]
        if len(classes) > MAX_STATES:
            raise TooLarge
        while waiting:
            state = waiting.pop()
            number = self._numbers[state]
            if nullable(state):
                self._last.add(number)
            for members in classes:
                after = self._derivative(state, members[0][0])
                _check_size(after)
                if after == NONE:
                    continue
                if after not in self._numbers:
                    self._numbers[after] = len(self._numbers)
                    waiting.append(after)
                    if len(self._numbers) > MAX_STATES:
                        raise TooLarge
                edge = (number, self._numbers[after])
                self._steps[edge] = ranges(*self._steps.get(edge, ()), *members)

    def _derivative(self, node: Node, code: int) -> Node:
        """Return the derivative of a node: an expression for the strings that may follow the character `code`."""
        self._left -= 1
        if self._left < 0:
            raise TooLarge
        kind: str = node[0]
        if kind == "set":
            return EMPTY if _holds(node[1], code) else NONE
        if kind in ("alt", "and"):
            join: Callable[..., Node] = alt if kind == "alt" else both
            return join(*(self._derivative(part, code) for part in node[1]))
        if kind == "not":
            return complement(self._derivative(node[1], code))
        if kind == "rep":
            _, body, least, most = node
            if most == 0:
                return NONE
            remaining: Any = ("rep", body, max(0, least - 1), None if most is None else most - 1)
            return cat(self._derivative(body, code), EMPTY if remaining[3] == 0 else remaining)
        if not node[1]:
            return NONE
        first, rest = node[1][0], cat(*node[1][1:])
        derivative = cat(self._derivative(first, code), rest)
        return alt(derivative, self._derivative(rest, code)) if nullable(first) else derivative

    def expression(self) -> str:
        """Convert the automaton to an expression by state elimination. Each step eliminates the state with the fewest
        paths through it."""
        begin, end = -1, -2
        edges: dict[tuple[int, int], str] = {edge: _set(members) for edge, members in self._steps.items()}
        edges[begin, 0] = ""
        edges |= {(state, end): "" for state in self._last}
        states = set(self._numbers.values())
        while states:
            sources = {state: [a for a, b in edges if b == state != a] for state in states}
            targets = {state: [b for a, b in edges if a == state != b] for state in states}
            state = min(states, key=lambda one: (len(sources[one]) * len(targets[one]), one))
            states.remove(state)
            loop = edges.pop((state, state), None)
            loops = "" if loop is None else f"(?:{loop})*"
            for source in sources[state]:
                for target in targets[state]:
                    through = _joined(edges[source, state]) + loops + _joined(edges[state, target])
                    parallel = edges.get((source, target))
                    edges[source, target] = through if parallel is None else f"{parallel}|{through}"
            edges = {edge: text for edge, text in edges.items() if state not in edge}
            if sum(map(len, edges.values())) > MAX_TEXT:
                raise TooLarge
        return edges.get((begin, end), r"[^\s\S]")


def _joined(text: str) -> str:
    return f"(?:{text})" if "|" in text else text


def _derivable(node: Node) -> bool:
    match node[0]:
        case "raw":
            return False
        case "cat" | "alt" | "and":
            return all(map(_derivable, node[1]))
        case "rep":
            return node[2] <= MAX_STATES and (node[3] or 0) <= MAX_STATES and _derivable(node[1])
        case "not":
            return _derivable(node[1])
    return True


def _sets(node: Node) -> Iterator[Ranges]:
    match node[0]:
        case "set":
            yield node[1]
        case "cat" | "alt" | "and":
            for part in node[1]:
                yield from _sets(part)
        case "rep" | "not":
            yield from _sets(node[1])


def _partition(node: Node) -> list[Ranges]:
    """Partition all characters into classes. Every character set in the node contains either all characters of a class
    or none."""
    sets = list(dict.fromkeys(_sets(node)))
    bounds = sorted({0, *(edge for characters in (*sets, ANY) for low, high in characters for edge in (low, high + 1))})
    classes: dict[tuple[bool, ...], list[tuple[int, int]]] = {}
    for low, after in zip(bounds, [*bounds[1:], ANY[-1][1] + 1], strict=True):
        if _holds(ANY, low) and low < after:
            classes.setdefault(tuple(_holds(characters, low) for characters in sets), []).append((low, after - 1))
    return [ranges(*members) for members in classes.values()]
