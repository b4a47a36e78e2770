"""The command `rorqual bench RUN`."""

from __future__ import annotations

from typing import Annotated

import typer

from rorqual.cli.settings import Settings


def bench(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder.")],
    settings: Settings = None,
) -> None:
    """Benchmark a run's inference on this machine.

    Shows tokens per second and latency.
    """
    from rorqual.cli.benching import bench_run

    bench_run(run.removeprefix("run="), settings)
