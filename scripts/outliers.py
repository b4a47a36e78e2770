"""Print the longest files and functions of the package for review. None of them is an error.

python scripts/outliers.py [NUMBER]
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "rorqual"


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    files: list[tuple[int, str]] = []
    functions: list[tuple[int, str]] = []
    for path in sorted(SOURCE.rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(SOURCE).as_posix()
        files.append((text.count("\n"), name))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append(
                    ((node.end_lineno or node.lineno) - node.lineno + 1, f"{name}:{node.lineno} {node.name}")
                )
    for what, found in (("files", files), ("functions", functions)):
        print(
            f"longest {what}:",
            *(f"{lines:5} {name}" for lines, name in sorted(found, reverse=True)[:number]),
            sep="\n  ",
        )


if __name__ == "__main__":
    main()
