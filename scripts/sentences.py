"""Draw English sentences from the source, README and the docs, and list those that are too long.

    python scripts/sentences.py --count 100 --seed 1     # draw, with the place of each
    python scripts/sentences.py --longer 32              # list the sentences with more words

Sentences come from docstrings, comments and messages with two words or more in `src`, and from the prose of README.md,
CONTRIBUTING.md, CHANGELOG.md, SECURITY.md and docs. Tables, code blocks and headings are left out.
"""

from __future__ import annotations

import argparse
import ast
import io
import random
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
END = re.compile(r"(?<=[.!?])[\"')\]*_]*\s+(?=[A-Z`\"'(*\[])")
Sentence = tuple[str, str]
"""The place, as file:line, and the sentence."""


def in_source(path: Path) -> Iterator[Sentence]:
    """Yield the sentences of docstrings, comments and messages of a Python file."""
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT).as_posix()
    tree = ast.parse(text)
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) in documented:
            yield from (
                (f"{name}:{node.lineno}", sentence)
                for part in re.split(r"\n\s*\n|\n\s*[-*] |\n {4,}\S+=.*", node.value)
                for sentence in split(part)
            )
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            for argument in [*node.exc.args, *(keyword.value for keyword in node.exc.keywords)]:
                message = _message(argument)
                yield from ((f"{name}:{node.lineno}", sentence) for sentence in split(message))
    block, first = list[str](), 0
    for token in [*tokenize.generate_tokens(io.StringIO(text).readline)]:
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(noqa|type:|fmt:|ruff|----|!)", token.string):
            first = first or token.start[0]
            block.append(token.string.lstrip("#: "))
        elif token.type not in (tokenize.NL, tokenize.COMMENT) and block:
            yield from ((f"{name}:{first}", sentence) for sentence in split(" ".join(block)))
            block, first = [], 0


def _message(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)  # type: ignore[misc]
    return ""


def in_page(path: Path) -> Iterator[Sentence]:
    """Yield the sentences of a page's prose."""
    name = path.relative_to(ROOT).as_posix()
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"^(```|~~~).*?^\1", lambda found: "\n" * found[0].count("\n"), text, flags=re.M | re.S)
    line = 1
    for paragraph in re.split(r"(\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) ))", text):
        if paragraph.strip() and not paragraph.lstrip().startswith(("|", "#", "    ", "![", "<")):
            yield from (
                (f"{name}:{line}", sentence) for sentence in split(re.sub(r"^\s*(?:[-*]|\d+\.) ", "", paragraph))
            )
        line += paragraph.count("\n")


def split(text: str) -> Iterator[str]:
    """Yield the sentences of a piece of prose that have two words or more."""
    for sentence in END.split(" ".join(text.split())):
        if len(sentence.split()) > 1:
            yield sentence.strip()


def sentences() -> list[Sentence]:
    """Return all sentences, in the order of the files."""
    found = [one for path in sorted((ROOT / "src").rglob("*.py")) for one in in_source(path)]
    pages = [ROOT / name for name in PAGES] + sorted((ROOT / "docs").rglob("*.md"))
    return found + [one for path in pages for one in in_page(path)]


def documented(place: str) -> str:
    """Return what a sentence of the source stands at: the names of its class and function, or the statement above it."""
    name, _, line = place.rpartition(":")
    if not name.endswith(".py"):
        return ""
    text = (ROOT / name).read_text(encoding="utf-8")
    above = text.splitlines()[int(line) - 2].strip() if int(line) > 1 else ""
    if re.match(r"\w+(: [^=]+)?( = |$)", above):
        return above[:100]
    definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, definitions)]
    around = [node for node in nodes if node.lineno <= int(line) <= (node.end_lineno or node.lineno)]
    return ".".join(node.name for node in sorted(around, key=lambda node: node.lineno)) or "module"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--longer", type=int, help="list the sentences with more words, instead of drawing")
    chosen = parser.parse_args()
    found = sentences()
    shown = (
        [one for one in found if len(one[1].split()) > chosen.longer]
        if chosen.longer
        else random.Random(chosen.seed).sample(found, chosen.count)
    )
    for number, (place, sentence) in enumerate(shown, start=1):
        at = documented(place)
        print(f"{number:3}  {place}  {f'[{at}] ' if at else ''}{sentence}")
    print(f"{len(shown)} of {len(found):,} sentences")


if __name__ == "__main__":
    main()
