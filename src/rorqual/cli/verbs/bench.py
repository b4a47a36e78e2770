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

    Shows tokens per second, latency, and the share of memory bandwidth that decoding reaches.

    Keys: batch=1,8,32 (concurrent requests), prompt=32,512 (prompt tokens per request), new=64 (tokens generated per request),
    repeats=5, data=FILE.txt (cut prompts from this text; default: random token ids), seed=0, out=FILE.json, threads=, device=,
    dtype=.
    """
    from rorqual.cli.benching import bench_run

    bench_run(run.removeprefix("run="), settings)
