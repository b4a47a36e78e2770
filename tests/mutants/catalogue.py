"""Every known bug, from `bugs/`, one file for each package of the source. `scripts/mutants.py` puts each back, alone.

`old` occurs exactly once in `file`. `tests` are those that must fail, by an assertion.
"""

from __future__ import annotations

import importlib
from pathlib import Path

MUTANTS = tuple(
    mutant
    for file in sorted((Path(__file__).parent / "bugs").glob("[a-z]*.py"))
    for mutant in importlib.import_module(f"bugs.{file.stem}").MUTANTS
)
