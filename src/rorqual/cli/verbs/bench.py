"""`rorqual bench RUN`"""

from __future__ import annotations

from typing import Annotated

import typer

from rorqual.cli.settings import Settings


def bench(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder.")],
    settings: Settings = None,
) -> None:
    """Measure how fast a run answers on this machine, and the share of the memory's speed that this is.

    Keys: batch=1,8,32 (requests at once), prompt=32,512 (tokens of each), new=64 (tokens of each reply), repeats=5, data=FILE.txt (prompts
    from a text; without it their ids are random), seed=0, out=FILE.json, threads=, device=, dtype=.
    """
    from rorqual.cli.benching import bench_run

    bench_run(run.removeprefix("run="), settings)
