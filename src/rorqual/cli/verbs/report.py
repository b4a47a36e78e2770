"""The command `rorqual report DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rorqual.core.errors import ConfigError
from rorqual.teach.paths import TeachPaths


def report(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Output folder of `rorqual quickstart`, or JSON file of `rorqual lab`."),
    ],
) -> None:
    """Rewrite the report of a quickstart or an experiment.

    The report is a self-contained HTML file, with its plots as separate files. For a JSON file of `rorqual lab`, the command
    applies the current verdict rule to the stored results, and rewrites the JSON file and its HTML page.
    """
    if folder.suffix == ".json":
        from rorqual.lab.experiment_run import judge_finding_again

        print(judge_finding_again(folder))
    elif (taught := TeachPaths(folder)).settings.is_file():
        raise ConfigError(
            "this is a folder of rorqual teach",
            where=str(folder),
            remedy=f"The same rorqual teach command writes {taught.report.name} again.",
        )
    else:
        from rorqual.recipes.quickstart.report import build_report

        print(build_report(folder))
