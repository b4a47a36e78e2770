"""`rorqual report DIR`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.settings import Placement, Settings, read


def report(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A folder that `rorqual quickstart` wrote, or the JSON of `rorqual lab`."),
    ],
    settings: Settings = None,
) -> None:
    """Write a quickstart's report again: one HTML file that needs no network, and its pictures.

    A JSON of `rorqual lab` is judged again from its own figures, by the rule of today: its verdict is written anew, and its page.

    Keys: device= and dtype=, as everywhere; a report reads files and computes with no tensor.
    """
    read(Placement, settings)

    if folder.suffix == ".json":
        from rorqual.lab.run import judge_again

        print(judge_again(folder))
    else:
        from rorqual.evals.report import build_report

        print(build_report(folder))
