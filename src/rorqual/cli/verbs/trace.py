"""The command `rorqual trace RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def trace(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="GRPO run.")],
) -> None:
    """Write an HTML page of a GRPO run's rollouts.

    The page is one self-contained file. For each step, the page shows groups, samples, rewards, advantages and lengths. The
    page also lists the problems whose result differs from the result at the previous occurrence of the same problem.
    """
    from rorqual.evals.trace_page import build_trace

    print(build_trace(folder))
