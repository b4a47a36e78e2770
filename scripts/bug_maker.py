"""Make bugs from source: each is a small change of one expression, as a tired person might make it.

| kind | change |
|---|---|
| drop | an argument that passes a setting is not passed; only where the parameter has a default |
| swap | two neighbouring arguments of the same annotated type are exchanged |
| compare | `<` becomes `<=`, `>` becomes `>=`, and back |
| extreme | `max` becomes `min`, and back |

Functions are found by name and by the arguments that they take: no types are inferred. An argument that equals the default is not
dropped, and what an error says is not changed.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

COMPARE = {ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")}
PAIRS = (("max", "min"), ("maximum", "minimum"), ("amax", "amin"))
EXTREME = dict(PAIRS) | {small: large for large, small in PAIRS}


BUILT_IN = ("get", "pop", "index", "count", "copy", "update", "join", "split", "replace")


@dataclass(frozen=True)
class Bug:
    """A change to bytes `start` to `end` of a file, which stand in lines `first` to `last` (the whole statement)."""

    file: str
    where: str
    kind: str
    words: str
    start: int
    end: int
    new: str
    first: int
    last: int
    number: int = 0

    @property
    def key(self) -> str:
        """The bug's name, which stays if lines above it change."""
        return hashlib.sha256(f"{self.file} {self.where} {self.kind} {self.words} {self.number}".encode()).hexdigest()[
            :10
        ]

    def __str__(self) -> str:
        return f"{self.file}:{self.first} {self.where}: {self.kind} {self.words}"

    def text(self, source: bytes) -> bytes:
        return source[: self.start] + self.new.encode() + source[self.end :]


@dataclass(frozen=True)
class Parameter:
    name: str
    kind: str
    default: str | None
    keyword_only: bool = False


def functions(trees: dict[str, ast.Module]) -> dict[str, list[list[Parameter]]]:
    """Return the parameters of all functions, methods and constructors of the source, by name."""
    classes = {node.name: node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    found: dict[str, list[list[Parameter]]] = defaultdict(list)
    methods = {id(child): owner for owner in classes.values() for child in owner.body}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                parameters = _parameters(node)
                static = any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in node.decorator_list)
                found[node.name].append(parameters[1:] if id(node) in methods and not static else parameters)
    for name, owner in classes.items():
        found[name].append(_constructor(owner, classes))
    return found


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[Parameter]:
    given = node.args
    usual = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(usual) - len(given.defaults)) + list(given.defaults)
    pairs = [(arg, default, False) for arg, default in zip(usual, defaults)]
    pairs += [(arg, default, True) for arg, default in zip(given.kwonlyargs, given.kw_defaults)]
    return [
        Parameter(
            arg.arg, ast.unparse(arg.annotation) if arg.annotation else "", default and ast.unparse(default), only
        )
        for arg, default, only in pairs
    ]


def _constructor(owner: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[Parameter]:
    """Return the parameters of `__init__`, or else the annotated fields of a data class or model, those of its bases first."""
    for node in owner.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return _parameters(node)[1:]
    fields: dict[str, Parameter] = {}
    for base in owner.bases:
        if isinstance(base, ast.Name) and base.id in classes and base.id != owner.name:
            fields |= {field.name: field for field in _constructor(classes[base.id], classes)}
    for node in owner.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            kind = ast.unparse(node.annotation)
            if not kind.startswith("ClassVar"):
                fields[node.target.id] = Parameter(node.target.id, kind, _field_default(node.value))
    return list(fields.values())


def _field_default(value: ast.expr | None) -> str | None:
    if isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] in ("Field", "field"):
        named = {word.arg: word.value for word in value.keywords}
        given = named.get("default", named.get("default_factory", value.args[0] if value.args else None))
        return given and ast.unparse(given)
    return value and ast.unparse(value)


class _Maker(ast.NodeVisitor):
    def __init__(self, file: str, source: bytes, known: dict[str, list[list[Parameter]]]) -> None:
        self.file, self.source, self.known = file, source, known
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.where: list[str] = []
        self.statement: tuple[int, int] | None = None
        self.bugs: list[Bug] = []

    def visit(self, node: ast.AST) -> None:
        scope = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        before = self.statement
        if scope:
            self.where.append(node.name)
        if isinstance(node, ast.stmt):
            # Of a compound statement, its head is one statement, and each of its body another.
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if body else node.end_lineno
            self.statement = (node.lineno, max(node.lineno, last))
        match node:
            case ast.Call():
                self._call(node)
            case ast.Compare():
                self._compare(node)
        self.generic_visit(node)
        self.statement = before
        if scope:
            self.where.pop()

    def _span(self, node: ast.expr | ast.keyword) -> tuple[int, int]:
        return (
            self.starts[node.lineno - 1] + node.col_offset,
            self.starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def _add(self, kind: str, words: str, start: int, end: int, new: str) -> None:
        # Module level and class bodies run at import; what they pass is tested through what uses it.
        if self.statement and self.where and not all(name[:1].isupper() for name in self.where):
            first, last = self.statement
            self.bugs.append(Bug(self.file, ".".join(self.where), kind, words, start, end, new, first, last))

    def _compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        for left, operator, right in zip(sides, node.ops, sides[1:]):
            if type(operator) in COMPARE:
                old, new = COMPARE[type(operator)]
                between = self._span(left)[1], self._span(right)[0]
                at = self.source.index(old.encode(), *between)
                self._add("compare", ast.unparse(node).replace(f" {old} ", f" {new} "), at, at + len(old), new)

    def _call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in EXTREME:
            end = self._span(node.func)[1]
            self._add("extreme", ast.unparse(node), end - len(name), end, EXTREME[name])
        fits = [wanted for wanted in self.known.get(name, ()) if _fits(node, wanted)]
        starred = any(isinstance(argument, ast.Starred) for argument in node.args)
        if not fits or starred or name.endswith("Error") or name in BUILT_IN:
            return
        self._drops(node, name, fits)
        self._swaps(node, name, fits)

    def _drops(self, node: ast.Call, name: str, fits: list[list[Parameter]]) -> None:
        given: list[tuple[ast.expr | ast.keyword, ast.expr, list[Parameter]]] = []
        for word in node.keywords:
            if word.arg:
                given.append((word, word.value, [next(p for p in wanted if p.name == word.arg) for wanted in fits]))
        if node.args and not any(word.arg is None for word in node.keywords):
            given.append((node.args[-1], node.args[-1], [wanted[len(node.args) - 1] for wanted in fits]))
        for argument, value, wanted in given:
            if any(one.default is None or one.default == ast.unparse(value) for one in wanted):
                continue
            start, end = self._span(argument)
            rest = self.source[end:]
            if rest.lstrip().startswith(b","):
                end += len(rest) - len(rest.lstrip()) + 1
                end += len(self.source[end:]) - len(self.source[end:].lstrip(b" "))
            else:
                before = self.source[:start].rstrip()
                start = len(before) - 1 if before.endswith(b",") else start
            self._add("drop", f"{name}({ast.unparse(argument)})", start, end, "")

    def _swaps(self, node: ast.Call, name: str, fits: list[list[Parameter]]) -> None:
        given = [(arg, [wanted[at] for wanted in fits]) for at, arg in enumerate(node.args)]
        given += [
            (word.value, [next(p for p in wanted if p.name == word.arg) for wanted in fits])
            for word in node.keywords
            if word.arg
        ]
        for (left, ours), (right, theirs) in pairwise(given):
            same = all(one.kind and one.kind == other.kind for one, other in zip(ours, theirs))
            texts = [ast.unparse(left), ast.unparse(right)]
            if same and texts[0] != texts[1]:
                (start, middle), (again, end) = self._span(left), self._span(right)
                parts = self.source[again:end], self.source[middle:again], self.source[start:middle]
                # Keywords between two values stay with their places.
                self._add("swap", f"{name}({', '.join(texts)})", start, end, b"".join(parts).decode())


def _fits(node: ast.Call, wanted: list[Parameter]) -> bool:
    names = {parameter.name for parameter in wanted}
    places = [parameter for parameter in wanted if not parameter.keyword_only]
    given = len(node.args) + len(node.keywords)
    needed = sum(parameter.default is None for parameter in wanted)
    enough = given >= needed or any(word.arg is None for word in node.keywords)
    return enough and len(node.args) <= len(places) and all(word.arg in names for word in node.keywords if word.arg)


def bugs_of(root: Path) -> list[Bug]:
    """Return the bugs of all files below `root`/src/rorqual."""
    files = {
        str(file.relative_to(root)): file.read_bytes() for file in sorted((root / "src" / "rorqual").rglob("*.py"))
    }
    trees = {file: ast.parse(source) for file, source in files.items()}
    known = functions(trees)
    found: list[Bug] = []
    for file, source in files.items():
        maker = _Maker(file, source, known)
        maker.visit(trees[file])
        found += maker.bugs
    return list(_numbered(found))


def _numbered(bugs: list[Bug]) -> Iterator[Bug]:
    seen: Counter[str] = Counter()
    for bug in bugs:
        number = seen[bug.key]
        seen[bug.key] += 1
        yield Bug(**{**vars(bug), "number": number})
