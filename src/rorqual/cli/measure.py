"""Functions of `rorqual eval`: read its settings, load the engine or client, choose the path of the result, and compute
the loss on a text file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rorqual.cli.machine import cores
from rorqual.cli.settings import Placement, check_device
from rorqual.core.config import Count, Natural, NonNegative, Seed, Share, scalar
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir, StopWhen, Thinking
from rorqual.tasks.base import Split

REMOTE = ("http://", "https://")
CASCADE = "cascade="
"""Start of the name of a cascade: cascade=STUDENT,TEACHER."""
NEED_TASK = ("votes", "best_of", "refine", "verifier", "verifier_data", "system")
"""Settings that have no meaning for the loss on a text."""
Typed = BeforeValidator(lambda raw: scalar(raw) if isinstance(raw, str) else raw)
SeedBits = Annotated[Literal[31, 64], Typed]
"""Number of bits of the random seeds that are sent to a server."""


class ProblemSettings(Placement):
    """Settings of commands that answer problems of a task.

    - `count`: number of problems. With `per_family`, it is the number per family and level.
    """

    task: str = ""
    data: str = ""
    split: Split = "test"
    count: Count = 100
    seed: Seed = 0
    thinking: Thinking = "auto"
    temperature: NonNegative = 0.0
    max_tokens: Count = 1024
    per_family: bool = False
    options: Annotated[dict[str, Any], Typed] = {}
    out: str = ""
    threads: Natural = 0


class EvalSettings(ProblemSettings):
    """Settings of `rorqual eval`.

    - `samples`: number of samples per problem.
    - `votes`: the same, with an answer by majority; 0 counts no votes.
    - `best_of`: the same, with the best sample as the answer; 0 chooses none.
    - `verifier`: run of the verifier that scores the samples.
    - `verifier_data`: file for the graded samples, from which a verifier can be trained.
    - `stop_when`: rule by which sampling of votes stops early.
    - `system`: system message before each problem.
    - `refine`: number of rounds in which the model is asked to check its reply.
    - `think_budget`: maximum number of thinking tokens; 0 sets no maximum.
    - `calculator`: whether the engine writes the results of calculations.
    - `sure`: confidence from which on the student's answer is kept, for a cascade; None is 0.8.
    - `page`: file for the page of a cascade.
    - `window`: tokens per window of a text; 0 uses the model's context length.
    """

    samples: Count = 1
    votes: Natural = 0
    best_of: Natural = 0
    stop_when: StopWhen = "never"
    verifier: str = ""
    verifier_data: str = ""
    refine: Natural = 0
    system: str = ""
    think_budget: Natural = 0
    calculator: bool = False
    sure: Share | None = None
    page: str = ""
    window: Natural = 0
    model: str = ""
    seed_bits: SeedBits = 64
    concurrency: int = Field(8, ge=1, le=1024)
    backend: str = "torch-invariant"

    def asked(self) -> dict[str, Any]:
        """Return the arguments for `evals.run.evaluate` that select the problems and set the sampling parameters."""
        from rorqual.engine.request import SamplingParams

        return {
            "split": self.split,
            "count": self.count,
            "seed": self.seed,
            "thinking": self.thinking,
            "per_family": self.per_family,
            "votes": self.votes > 0,
            "stop_when": self.stop_when,
            "refine": self.refine,
            "system": self.system,
            "params": SamplingParams(
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                seed=self.seed,
                n=max(self.samples, self.votes, self.best_of),
                think_budget=self.think_budget or None,
                calculator=self.calculator,
            ),
        }

    @model_validator(mode="after")
    def _check_samples(self) -> Self:
        counts = {name: count for name in ("votes", "best_of") if (count := getattr(self, name))}
        for name, count in counts.items():
            if count == 1:
                raise ValueError(f"{name}=1 is a single sample. Give {name}=2 or more, or leave {name} out.")
            if self.samples not in (1, count) or len(set(counts.values())) > 1:
                raise ValueError(
                    f"samples={self.samples}, votes={self.votes} and best_of={self.best_of} contradict each other. Give one of them."
                )
            if self.temperature == 0:
                raise ValueError(
                    f"with temperature=0, all {count} samples of {name}={count} are the same. Give temperature=1."
                )
        if self.stop_when != "never" and (not self.votes or self.best_of or self.verifier):
            raise ValueError(
                f"stop_when={self.stop_when} stops sampling for a majority. Give votes=N with it, and neither best_of nor verifier."
            )
        if self.verifier and not counts:
            raise ValueError("a verifier chooses among several samples. Give best_of=N or votes=N with it.")
        if self.verifier_data and self.split != "train":
            raise ValueError(
                f"verifier_data on split={self.split} would train a verifier on problems that measure it. Give split=train."
            )
        if self.verifier_data and self.verifier_data == self.out:
            raise ValueError("verifier_data and out are the same file. Give two names.")
        if not self.task and (others := [name for name in NEED_TASK if getattr(self, name)]):
            raise ValueError(f"the key '{others[0]}' needs problems. Give task=NAME with it.")
        return self


def models_of(text: str) -> tuple[str, str]:
    """Return student and teacher of `STUDENT,TEACHER`. Raises ConfigError for another number of names."""
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or not all(names):
        raise ConfigError(
            f"'{text}' names {len([name for name in names if name])} models",
            where="cascade",
            remedy="Give two: cascade=STUDENT,TEACHER.",
        )
    return names[0], names[1]


def generator(model: str, settings: EvalSettings) -> Any:
    """Return an engine for a run folder, or a client for a server's address. The API key is read from RORQUAL_API_KEY."""
    if model.startswith(REMOTE):
        from rorqual.engine.remote.engine import RemoteEngine

        if not settings.model:
            raise ConfigError(
                "model= is required, because a server may serve several models",
                where=model,
                remedy="Give model=NAME.",
            )
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
    """Return the path of the evaluation's result: `out` if it is set.

    The default for a run is a file in the run's `evals/` folder, named by task, split and thinking mode. The default for a
    server or a cascade is None.
    """
    if settings.out:
        return Path(settings.out)
    if model.startswith((*REMOTE, CASCADE)):
        return None
    name = re.sub(r"[^\w.]+", "-", settings.task).strip("-.")
    return Path(model) / "evals" / f"{name}-{settings.split}-{settings.thinking}.json"


def was_trained_on(run: RunDir, data: Path) -> bool:
    """Return whether `data` is the training data of `run`, of the run that it started from, or of an earlier run."""
    seen = set[Path]()
    while run.config_file.is_file() and run.path.resolve() not in seen:
        seen.add(run.path.resolve())
        config = run.config()
        source, start = (config.get(key) or {} for key in ("source", "start"))
        if source.get("data") and Path(str(source["data"])).resolve() == data.resolve():
            return True
        run = RunDir(Path(str(start.get("run") or "")))
    return False


ROWS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")
"""File extensions of row data, such as conversations.

If row data were read as plain text, the loss would include keys and braces.
"""


def held_out_text(path: str) -> str:
    """Return the held-out last tenth of a text file. Raises ConfigError for a file of row data, such as JSONL or Parquet."""
    from rorqual.data.source.text import read_text

    if Path(path).suffix.lower() in ROWS:
        raise ConfigError(
            "this file holds rows, but this command reads plain text",
            where=path,
            remedy="Give a text file. For rows of questions and answers, add task=messages or task=./mine.py:Class.",
        )
    return read_text(Path(path)).validation


def loss_on_text(model: str, settings: EvalSettings) -> str:
    """Compute the model's loss on the held-out last tenth of a text file. Return the results as text.

    The text is split into windows of `window` tokens (default: the model's context length).
    """
    import torch

    from rorqual.engine.engine import Engine
    from rorqual.evals.perplexity import text_loss

    if model.startswith(REMOTE):
        raise ConfigError(
            "a server cannot compute the loss of a text", where="command line", remedy="Give a run's folder."
        )
    text = held_out_text(settings.data)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    engine = generator(model, settings)
    assert isinstance(engine, Engine)
    if settings.window > engine.max_len:
        raise ConfigError(
            f"window={settings.window} exceeds the model's context of {engine.max_len}",
            where="command line",
            remedy=f"Use window={engine.max_len} or less.",
        )
    loss = text_loss(engine.scorer, engine.tokenizer, text, window=settings.window or engine.max_len)
    return "\n".join(
        [
            f"{model} on the last tenth of {settings.data}: {loss.tokens:,} tokens, {loss.characters:,} characters,",
            f"each predicted once, from at most {loss.window} tokens before it.",
            f"  loss per token      {loss.per_token:.4f} nats (perplexity {loss.perplexity:.2f})",
            f"  loss per character  {loss.per_character:.4f} nats",
            f"  bits per byte       {loss.bits_per_byte:.4f}",
        ]
    )
