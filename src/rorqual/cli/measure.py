"""What `rorqual eval` measures with: a run or an address behind one interface, and where the result is kept."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rorqual.cli.machine import cores
from rorqual.cli.settings import Placement, check_device
from rorqual.core.config import scalar
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir, Thinking
from rorqual.tasks.base import Split, Task

if TYPE_CHECKING:
    from rorqual.evals.evaluation import Evaluation

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
    count: int = Field(100, ge=1)
    seed: int = Field(0, ge=0)
    thinking: Thinking = "auto"
    temperature: float = Field(0.0, ge=0)
    samples: int = Field(1, ge=1)
    max_tokens: int = Field(1024, ge=1)
    window: int = Field(0, ge=0)
    per_family: bool = False
    options: Annotated[dict[str, Any], Typed] = {}
    out: str = ""
    threads: int = Field(0, ge=0)
    model: str = ""
    seed_bits: SeedBits = 64
    concurrency: int = Field(8, ge=1, le=1024)

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
        from rorqual.engine.remote import RemoteEngine

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
    )


def evaluation_file(model: str, settings: EvalSettings) -> Path | None:
    """Where every answer is kept: `out`, else in the run's folder by task, split and mode; None for a server."""
    if settings.out:
        return Path(settings.out)
    if model.startswith(REMOTE):
        return None
    name = re.sub(r"[^\w.]+", "-", settings.task).strip("-.")
    return Path(model) / "evals" / f"{name}-{settings.split}-{settings.thinking}.json"


def measure(
    model: str, settings: EvalSettings, task: Task, file: Path | None, progress: Callable[[int, int], None]
) -> Evaluation:
    """The task's problems put to `model`, saved in `file`. Answers are kept beside it until then: the same command goes on from them."""
    from rorqual.evals import run
    from rorqual.evals.kept import Kept

    with Kept(generator(model, settings), file, _made(model, settings)) as kept:
        try:
            found = run.evaluate(kept, task, progress=progress, model=model, **settings.asked())
            if file is not None:
                found.save(file)
        except BaseException:
            if kept.count:
                print(f"\n{kept.count:,} answers are kept in {kept.path}: the same command goes on.", file=sys.stderr)
            elif model.startswith(REMOTE) and file is None:
                print("\nNo answer is kept: out=FILE.json keeps each as it comes.", file=sys.stderr)
            raise
        kept.forget()
    return found


def _made(model: str, settings: EvalSettings) -> dict[str, Any]:
    """What an answer depends on beside what is asked."""
    if model.startswith(REMOTE):
        return {"address": model, "model": settings.model, "seed_bits": settings.seed_bits}
    made = {"run": fingerprint(RunDir(Path(model))), "dtype": settings.dtype, "device": settings.device}
    return made | arithmetic()


def arithmetic() -> dict[str, Any]:
    """The versions that a local engine's last bits depend on."""
    import torch

    import rorqual
    from rorqual.engine.weights import ROUNDING

    return {"rorqual": rorqual.__version__, "torch": torch.__version__, "rounding": ROUNDING}


def fingerprint(run: RunDir) -> str:
    """Of a run's settings, its tokenizer, its template where it has one, and its newest checkpoint."""
    from rorqual.data.chat.find import TEMPLATE_FILE

    digest = hashlib.sha256()
    for file in (run.config_file, run.tokenizer_file, run.path / TEMPLATE_FILE, *sorted(run.checkpoint().rglob("*"))):
        if file.is_file():
            digest.update(f"{file.relative_to(run.path)} {file.stat().st_size}\n".encode())
            with open(file, "rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def loss_on_text(model: str, settings: EvalSettings) -> str:
    """The held-out tenth of a text file under a run's model, in windows as long as its context."""
    from rorqual.data.source.text import read_text
    from rorqual.engine.engine import Engine
    from rorqual.evals.perplexity import text_loss

    if model.startswith(REMOTE):
        raise ConfigError("a server gives no loss of a text", where="command line", remedy="Name a run's folder.")
    text = read_text(Path(settings.data)).validation
    engine = generator(model, settings)
    assert isinstance(engine, Engine)
    if settings.window > engine.max_len:
        raise ConfigError(
            f"window={settings.window}, the model's context is {engine.max_len}",
            where="command line",
            remedy="Lower it.",
        )
    found = text_loss(engine.model, engine.tokenizer, text, window=settings.window or engine.max_len)
    return "\n".join(
        [
            f"{model} on the last tenth of {settings.data}: {found.tokens:,} tokens, {found.characters:,} characters,",
            f"each predicted once, from at most {found.window} tokens before it.",
            f"  loss a token      {found.per_token:.4f} nats (perplexity {found.perplexity:.2f})",
            f"  loss a character  {found.per_character:.4f} nats",
            f"  bits a byte       {found.bits_per_byte:.4f}",
        ]
    )
