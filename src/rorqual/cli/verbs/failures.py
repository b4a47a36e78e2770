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

    count: Natural = Field(3, description="examples of each change")


def failures(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `rorqual teach` wrote.")],
    settings: Settings = None,
) -> None:
    """Show which examples the chosen rung gets wrong.

    Labels are grouped by the right label, and JSON answers by field. Then come examples that the chosen rung lost against the
    best other rung, still gets wrong, or gained.
    """
    chosen = parse_settings(FailuresSettings, settings)

    from rorqual.teach.failures import failures_text
    from rorqual.teach.results import load_results

    kind, before, after = load_results(run)
    print(failures_text(before, after, kind, count=chosen.count))
