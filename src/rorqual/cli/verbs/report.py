"""`rorqual report DIR`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.settings import Placement, Settings, read


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `rorqual quickstart` wrote.")],
    settings: Settings = None,
) -> None:
    """Write a quickstart's report again: one HTML file that needs no network, and its pictures.

    Keys: device= and dtype=, as everywhere; a report reads files and computes with no tensor.
    """
    read(Placement, settings)

    from rorqual.evals.report import build_report

    print(build_report(folder))
