"""What `rorqual eval` measures with: a run or an address behind one interface, and where the result is kept."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rorqual.cli.machine import cores
from rorqual.cli.settings import Placement, check_device
from rorqual.core.config import Count, Natural, NonNegative, Seed, scalar
from rorqual.core.errors import ConfigError
from rorqual.core.records import Thinking
from rorqual.tasks.base import Split

REMOTE = ("http://", "https://")
Typed = BeforeValidator(lambda raw: scalar(raw) if isinstance(raw, str) else raw)
SeedBits = Annotated[Literal[31, 64], Typed]
"""Of the seeds that an address gets."""


class EvalSettings(Placement):
    """`samples` of each problem; `count` problems, or, with `per_family`, of each family and level. `window`: tokens of a text
    that are read together, 0 for the model's context."""

    task: str = ""
    data: str = ""
    split: Split = "test"
    count: Count = 100
    seed: Seed = 0
    thinking: Thinking = "auto"
    temperature: NonNegative = 0.0
    samples: Count = 1
    max_tokens: Count = 1024
    window: Natural = 0
    per_family: bool = False
    options: Annotated[dict[str, Any], Typed] = {}
    out: str = ""
    threads: Natural = 0
    model: str = ""
    seed_bits: SeedBits = 64
    concurrency: int = Field(8, ge=1, le=1024)
    backend: str = "torch-invariant"

    def asked(self) -> dict[str, Any]:
        """The arguments of `evals.run.evaluate` that say what is asked and how."""
        from rorqual.engine.request import SamplingParams

        return {
            "split": self.split,
            "count": self.count,
            "seed": self.seed,
            "thinking": self.thinking,
            "per_family": self.per_family,
            "params": SamplingParams(
                max_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed, n=self.samples
            ),
        }


def generator(model: str, settings: EvalSettings) -> Any:
    """The engine of a run's folder, or the server at an address (its key in RORQUAL_API_KEY)."""
    if model.startswith(REMOTE):
        from rorqual.engine.remote.engine import RemoteEngine

        if not settings.model:
            raise ConfigError("a server may hold several models", where=model, remedy="Name one: model=NAME.")
        key = os.environ.get("RORQUAL_API_KEY", "")
        return RemoteEngine(
            model, model=settings.model, api_key=key, seed_bits=settings.seed_bits, concurrency=settings.concurrency
        )
    from rorqual.engine.engine import Engine

    check_device(settings.device)
    return Engine(
        Path(model),
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads or cores(),
        record_experts=False,
        backend=settings.backend,
    )


def evaluation_file(model: str, settings: EvalSettings) -> Path | None:
    """Where every answer is kept: `out`, else in the run's folder by task, split and mode; None for a server."""
    if settings.out:
        return Path(settings.out)
    if model.startswith(REMOTE):
        return None
    name = re.sub(r"[^\w.]+", "-", settings.task).strip("-.")
    return Path(model) / "evals" / f"{name}-{settings.split}-{settings.thinking}.json"


def loss_on_text(model: str, settings: EvalSettings) -> str:
    """The held-out tenth of a text file under a run's model, in windows as long as its context."""
    import torch

    from rorqual.data.source.text import read_text
    from rorqual.engine.engine import Engine
    from rorqual.evals.perplexity import text_loss

    if model.startswith(REMOTE):
        raise ConfigError("a server gives no loss of a text", where="command line", remedy="Name a run's folder.")
    text = read_text(Path(settings.data)).validation
    if settings.threads:
        torch.set_num_threads(settings.threads)
    engine = generator(model, settings)
    assert isinstance(engine, Engine)
    if settings.window > engine.max_len:
        raise ConfigError(
            f"window={settings.window}, the model's context is {engine.max_len}",
            where="command line",
            remedy="Lower it.",
        )
    found = text_loss(engine.scorer, engine.tokenizer, text, window=settings.window or engine.max_len)
    return "\n".join(
        [
            f"{model} on the last tenth of {settings.data}: {found.tokens:,} tokens, {found.characters:,} characters,",
            f"each predicted once, from at most {found.window} tokens before it.",
            f"  loss a token      {found.per_token:.4f} nats (perplexity {found.perplexity:.2f})",
            f"  loss a character  {found.per_character:.4f} nats",
            f"  bits a byte       {found.bits_per_byte:.4f}",
        ]
    )
