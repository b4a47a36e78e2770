"""The command `rorqual failures RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from rorqual.cli.settings import Settings, parse_settings
from rorqual.core.config import Config, Natural


class FailuresSettings(Config):
    """Settings of `rorqual failures`."""

    than: str = Field("", description="baseline to compare with, such as majority; default: the base model")
    count: Natural = Field(3, description="examples of each change")


def failures(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `rorqual teach` wrote.")],
    settings: Settings = None,
) -> None:
    """Show which examples a taught model still gets wrong, and which examples it gained or lost against a baseline.

    Errors in labels are grouped by the right answer, and errors in JSON answers by field. Lost, still wrong and gained
    examples follow.
    """
    chosen = parse_settings(FailuresSettings, settings)

    from rorqual.teach.failures import failures_text
    from rorqual.teach.results import load_results

    kind, before, after = load_results(run, chosen.than)
    print(failures_text(before, after, kind, count=chosen.count))
