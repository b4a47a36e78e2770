"""`rorqual trace RUN`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.settings import Placement, Settings, read


def trace(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run of GRPO.")],
    settings: Settings = None,
) -> None:
    """Write a page to look at a run's rollouts: groups, samples, rewards, advantages, lengths, flips, by step.

    It is one HTML file that needs no network. Keys: device= and dtype=, as everywhere; the page reads files only.
    """
    read(Placement, settings)

    from rorqual.evals.trace import build_trace

    print(build_trace(folder))
