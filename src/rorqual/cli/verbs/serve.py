"""The command `rorqual serve MODEL`."""

from __future__ import annotations

from typing import Annotated

import typer

from rorqual.cli.settings import Settings
from rorqual.core.extras import extra


def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run folder, or cascade=STUDENT,TEACHER.")],
    settings: Settings = None,
) -> None:
    """Serve a run through an OpenAI-compatible API.

    The API has chat and text completions, with streaming and separate reasoning content. The first start creates an API key and
    prints it once. Every API route requires a key. Ctrl-C shuts the server down gracefully.

    Keys for the server: host=127.0.0.1, port=8000 (0: any free port), name= (default: the run's name), grace=30, ui=true (chat page
    at /), cors= (allowed origins).

    Keys for access control: keys=FILE, tenant=default (gets a key if it has none), operator=default (may read the metrics of
    all tenants).

    Keys for limits: queue=256, max_body=8388608, stall=30 (disconnect a client that reads nothing for this many seconds),
    hang=120, load=3600, think_budget=0 (maximum thinking tokens of a chat reply; 0: no maximum).

    Keys for the engine: slots=16, max_len=0 (0: the model's context length), step_tokens=256, cache_dir=, disk_bytes=,
    cache_bytes=, backend=torch-invariant, threads=, device=, dtype=.

    Keys for cascade=STUDENT,TEACHER (the teacher answers chat requests where the student is not sure): calibration=FILE (result of
    `rorqual eval cascade=STUDENT,TEACHER`), sure= (smallest confidence of the student).

    Keys for rollouts: rollout_dir= (accept weights from `rorqual train ... rollout=` into this folder), record_kept=false.
    """
    with extra("serve", "fastapi", "uvicorn", "starlette"):
        from rorqual.cli.serving import start
    start(model, settings)
