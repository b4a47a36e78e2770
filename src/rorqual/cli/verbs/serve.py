"""`rorqual serve RUN`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.settings import Settings
from rorqual.core.errors import ConfigError


def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    settings: Settings = None,
) -> None:
    """Answer to OpenAI's clients: chat and text completions, streamed or not, reasoning apart. Ctrl-C stops it gracefully.

    The first start makes a key and shows it once; every route asks for it. Keys: host=127.0.0.1, port=8000 (0: any), name= (the
    run's), tenant=default (one without a key gets one), keys=FILE, slots=16, max_len=0 (the context), queue=256,
    max_body=8388608, grace=30, ui= (the page at /; by itself where Gradio is), hang=120, load=3600, cache_dir=, disk_bytes=,
    cache_bytes=, backend=torch-invariant, step_tokens=256,
    operator=default (the tenant that reads everybody's figures), stall=30 (seconds that a client
    may leave unread), cors= (origins whose scripts may ask), rollout_dir= (a folder for weights that `rorqual train ... rollout=` sends: the
    server then samples for it), record_kept=false, threads=, device=, dtype=.
    """
    try:
        from rorqual.cli.serving import start
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "starlette"):
            raise
        raise ConfigError(
            f"{error.name} is not installed", where="serve", remedy='pip install "rorqual[serve]"'
        ) from None
    start(run, settings)
