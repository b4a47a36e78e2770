"""The command `rorqual serve MODEL`."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import Field

from rorqual.cli.settings import EngineSettings, Settings
from rorqual.core.config import Bytes, Count, Natural, NonNegative, Share
from rorqual.core.extras import require_extra
from rorqual.serve.options import ServerOptions


class ServeSettings(ServerOptions, EngineSettings):
    """Settings of `rorqual serve`."""

    slots: int = Field(16, ge=1, le=4096, description="maximum sequences in a batch")
    max_len: Natural = Field(0, description="context in tokens; 0: the model's, as far as the KV cache allows")
    threads: Natural = Field(0, description="threads of the engine; 0: all cores")
    cache_dir: str = Field("", description="folder of the prefix cache on disk, which survives restarts")
    cache_bytes: Bytes = Field(0, description="bytes of the KV cache in memory; 0: 1 GiB")
    disk_bytes: int = Field(4 << 30, ge=1 << 20, le=2**63 - 1, description="maximum bytes of the prefix cache on disk")
    step_tokens: int = Field(
        256,
        ge=32,
        le=2**63 - 1,
        description="maximum tokens of an engine step; fewer shorten the delay that a long prompt causes for others",
    )
    calibration: str = Field("", description="for a cascade: result of rorqual eval cascade=STUDENT,TEACHER")
    sure: Share | None = Field(
        None, description="for a cascade: smallest confidence of the student; default: that of the calibration"
    )
    rollout_dir: str = Field(
        "", description="folder for weights from rorqual train ... rollout=ADDRESS, which needs a key of its own"
    )
    fallback: str = Field(
        "", description="for rorqual teach: address of a server that answers where the promise cannot be kept"
    )
    fallback_model: str = Field("", description="name of the fallback's model; its key is in RORQUAL_API_KEY")
    fallback_budget: NonNegative = Field(0.0, description="maximum money for the fallback; 0: no limit")
    price_in: NonNegative = Field(0.0, description="fallback's price per million prompt tokens")
    price_out: NonNegative = Field(0.0, description="fallback's price per million reply tokens")
    tune: str = Field("", description="folder of OpenAI's fine-tuning API: its files, jobs and tuned models")
    tune_names: str = Field(
        "",
        description="names of base models, separated by commas: NAME is the served run, NAME=ladder the ladder; *: every name",
    )
    tune_jobs: Count = Field(1, le=64, description="fine-tuning jobs that run at the same time")
    tune_bytes: Bytes = Field(8 << 30, description="maximum bytes of a tenant's files, jobs and models")
    tune_memory: Bytes = Field(0, description="maximum bytes of memory of a fine-tuning job; 0: no limit")
    record_kept: bool = Field(False, description="for rollouts: return the tokens that top_p and top_k kept")


def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Run folder, folder of rorqual teach, or cascade=STUDENT,TEACHER.")
    ],
    settings: Settings = None,
) -> None:
    """Serve a run through an OpenAI-compatible API. A folder that `rorqual teach` wrote is served as it chose, whatever rung that is.

    The API has chat and text completions, with streaming and separate reasoning content. The first start creates an API key
    and prints the key once. Every API route requires a key. Ctrl-C shuts the server down gracefully.
    """
    with require_extra("serve", "fastapi", "uvicorn", "starlette", "python_multipart"):
        from rorqual.cli.serving import start_server
    start_server(model, settings)
