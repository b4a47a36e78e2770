"""Count a package's statements, files, class names shared by several classes, and type checks against kinds.

python scripts/structure.py [FOLDER]            # a package; the default is this checkout's src/rorqual

A type check is `isinstance(x, Kind)` outside the kind's own package. Kinds are attentions, feed-forward networks, routers,
blocks, adapters, objectives, sources and optimizers, and their configurations.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "rorqual"
ROOTS = {
    "Attention": "model/attention",
    "AttentionConfig": "model/attention",
    "FFN": "model/ffn",
    "FFNConfig": "model/ffn",
    "Router": "model/ffn",
    "RouterConfig": "model/ffn",
    "Block": "model/block",
    "BlockConfig": "model/block",
    "Tune": "model/adapter",
    "Objective": "train/objectives",
    "Source": "train/sources",
    "SourceConfig": "train/sources",
    "Optimizer": "train/optim",
    "OptimConfig": "train/optim",
    "Backend": "ops/backends",
}
"""The base classes of kinds, and the package of each."""


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE
    trees = {
        path.relative_to(folder).as_posix(): ast.parse(path.read_text("utf-8")) for path in sorted(folder.rglob("*.py"))
    }
    nodes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    statements = sum(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in nodes)
    print(f"statements without docstrings: {statements:,} in {len(trees):,} files")
    places, bases = defaultdict[str, list[str]](list), dict[str, list[str]]()
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)
                bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
    shared = {name: where for name, where in places.items() if len(where) > 1}
    within = {name for name, where in shared.items() if len({_room(file) for file in where}) < len(where)}
    print(f"shared class names: {len(within)} within a package, {len(shared) - len(within)} across packages")
    for name, where in sorted(shared.items()):
        print(f"  {name}: {', '.join(where)}")
    kinds = {name: package for name in places if (package := _package(name, bases, set()))}
    looks = [look for name, tree in trees.items() for look in _looks(name, tree, kinds)]
    print(f"type checks against a kind outside its package: {len(looks)}", *looks, sep="\n  ")


def _room(file: str) -> str:
    return file.split("/")[0]


def _package(name: str, bases: dict[str, list[str]], seen: set[str]) -> str | None:
    """Return the package of the kind of class `name`, or None if it is not a kind."""
    if name in ROOTS:
        return ROOTS[name]
    found = (_package(base, bases, seen | {name}) for base in bases.get(name, ()) if base not in seen)
    return next((package for package in found if package), None)


def _looks(file: str, tree: ast.Module, kinds: dict[str, str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            for part in ast.walk(node.args[1]):
                if isinstance(part, ast.Name) and part.id in kinds and not file.startswith(kinds[part.id]):
                    yield f"{file}:{node.lineno} {part.id}"


if __name__ == "__main__":
    main()
