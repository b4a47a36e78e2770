"""The command `rorqual plan MODEL --train|--serve key=value ...`."""

from __future__ import annotations

from typing import Annotated

import typer

from rorqual.cli.settings import Settings


def plan(
    model: Annotated[
        str,
        typer.Argument(metavar="[MODEL|RUN|quickstart]", help="Model as for inspect, run with metrics, or quickstart."),
    ] = "",
    settings: Settings = None,
    train: Annotated[bool, typer.Option("--train", help="Plan training: tokens=14.8T hardware=h800 n=2048.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Plan serving: hardware=h800 n=144 prompt=4k reply=1k.")
    ] = False,
    published: Annotated[
        bool, typer.Option("--published", help="Compare published figures with computed ones.")
    ] = False,
    tables: Annotated[bool, typer.Option("--tables", help="Show hardware and prices, with sources.")] = False,
) -> None:
    """Estimate the cost of training or serving a model.

    A training plan shows FLOPs, time, money and memory. A serving plan shows KV cache, batch size, speed and price. Numbers
    may have a suffix, as in 14.8T, 2.788M and 4k. out=DIR writes an HTML page with plots.

    For a run, the command shows the run's measured speed and the cost of further training.
    """
    from rorqual.cli.plan_answer import plan_text

    print(plan_text(model, settings, train=train, serve=serve, published=published, tables=tables))
