"""`rorqual plan MODEL --train|--serve key=value ...`"""

from __future__ import annotations

from typing import Annotated

import typer

from rorqual.cli.settings import Settings


def plan(
    model: Annotated[
        str,
        typer.Argument(metavar="[MODEL|RUN|quickstart]", help="As for inspect; a run with metrics; our quickstart."),
    ] = "",
    settings: Settings = None,
    train: Annotated[bool, typer.Option("--train", help="Plan a training: tokens=14.8T hardware=h800 n=2048.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Plan serving: hardware=h800 n=144 prompt=4k reply=1k.")
    ] = False,
    published: Annotated[bool, typer.Option("--published", help="Published figures beside ours.")] = False,
    tables: Annotated[bool, typer.Option("--tables", help="Hardware and prices, with sources.")] = False,
) -> None:
    """Say what a model costs, before anybody pays: FLOPs, time, money and memory to train it; cache, batch, speed and price to serve it.

    Numbers may be 14.8T, 2.788M, 4k. Keys for training: tokens, hardware, n, context, utilisation, price, precision, dp, tp, pp, ep,
    zero, recompute, microbatch, full_attention, mtp. For serving: hardware, n, tp, dtype, cache_bytes, prompt, reply, hit_rate,
    batch, price, margin, busy, prefill_used, decode_used. A run says how fast it was, and what more of it takes: steps, tokens,
    model, core_hour. The quickstart: size, seed, threads. out=DIR writes a page with pictures.
    """
    from rorqual.cli.plan_answer import answer

    print(answer(model, settings, train=train, serve=serve, published=published, tables=tables))
