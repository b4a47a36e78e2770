"""Sample passages of different kinds that come with the package: prose, code, tables, repeats, names and Chinese.

`samples/README.md` states the origin of each passage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

Kind = Literal["prose", "code", "tables", "repeats", "names", "chinese"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def load_passage(kind: Kind) -> str:
    """Return the sample passage of a kind."""
    return (Path(__file__).parent / "samples" / "kinds" / f"{kind}.txt").read_text(encoding="utf-8")
