"""Defines the options of `rorqual eval`, and the command's functions: load the engine or client, and choose the path of the
result."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rorqual.cli.machine import available_cores
from rorqual.cli.settings import DeviceSettings, EngineSettings, check_device
from rorqual.core.config import Count, Natural, NonNegative, Seed, Share, parse_scalar
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir, StopWhen, Thinking, read_json
from rorqual.tasks.task import Split

REMOTE = ("http://", "https://")
CASCADE = "cascade="
"""Prefix of the name of a cascade, as in `cascade=STUDENT,TEACHER`."""
NEED_TASK = ("votes", "best_of", "refine", "verifier", "verifier_data", "system")
"""Settings of `rorqual eval` that need a task, and have no meaning for the loss on a text."""
Typed = BeforeValidator(lambda raw: parse_scalar(raw) if isinstance(raw, str) else raw)
SeedBits = Annotated[Literal[31, 64], Typed]
"""Number of bits of the random seeds that are sent to a server."""


class ProblemSettings(DeviceSettings):
    """Settings of commands in which a model answers problems of a task. A result records all settings except those with
    `exclude=True`, on which it does not depend."""

    task: str = Field(
        "",
        description="families, families:add,gcd, gsm8k, math500, folio, knights, messages, openai, everyday, long, gym:NAME or ./mine.py:Class",
    )
    data: str = Field("", description="file of the task's problems")
    split: Split = Field("test", description="split of the problems")
    count: Count = Field(100, description="number of problems; with per_family, per family and level")
    seed: Seed = Field(0, description="seed of the problems and samples")
    thinking: Thinking = Field("auto", description="whether the model thinks")
    temperature: NonNegative = Field(0.0, description="0 is greedy decoding")
    max_tokens: Count = Field(1024, description="maximum tokens of a reply")
    per_family: bool = Field(False, description="take count problems of each family and level")
    options: Annotated[dict[str, Any], Typed] = Field({}, description="arguments of the task, such as {hard: 0.5}")
    out: str = Field("", description="JSON file of the result", exclude=True)
    threads: Natural = Field(0, description="threads; 0: all cores", exclude=True)


class EvalSettings(EngineSettings, ProblemSettings):
    """Settings of `rorqual eval`."""

    samples: Count = Field(1, description="samples per problem")
    votes: Natural = Field(0, description="samples per problem, and their majority as the answer")
    best_of: Natural = Field(0, description="samples per problem, and the best as the answer")
    stop_when: StopWhen = Field("never", description="fewer votes where they suffice")
    verifier: str = Field("", description="run that scores the samples")
    verifier_data: str = Field(
        "", description="file for the graded samples, to train a verifier on (split=train)", exclude=True
    )
    refine: Natural = Field(0, description="rounds in which the model checks its reply")
    system: str = Field("", description="system message before each problem")
    think_budget: Natural = Field(0, description="maximum thinking tokens; 0: no limit")
    calculator: bool = Field(False, description="let the engine write the results of calculations")
    sure: Share | None = Field(None, description="for a cascade: smallest confidence of the student; default 0.8")
    page: str = Field("", description="for a cascade: HTML file", exclude=True)
    window: Natural = Field(
        0, description="without a task: tokens per window of the text; 0: the model's context length"
    )
    model: str = Field("", description="for a server: name of its model", exclude=True)
    seed_bits: SeedBits = Field(64, description="for a server: size of its seeds")
    concurrency: int = Field(8, ge=1, le=1024, description="for a server: maximum requests at a time", exclude=True)

    def evaluate_arguments(self) -> dict[str, Any]:
        """Return the arguments for `evals.evaluating.evaluate` that select the problems and set the sampling parameters."""
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


def split_cascade_models(text: str) -> tuple[str, str]:
    """Split the text `STUDENT,TEACHER` into (student, teacher). Raises ConfigError if the text does not name exactly two models."""
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or not all(names):
        raise ConfigError(
            f"'{text}' names {len([name for name in names if name])} models",
            where="cascade",
            remedy="Give two: cascade=STUDENT,TEACHER.",
        )
    return names[0], names[1]


def load_client(address: str, model: str, *, seed_bits: SeedBits, concurrency: int) -> Any:
    """Return a client for a server's address. The API key is read from RORQUAL_API_KEY. Raises ConfigError if `model` is empty."""
    from rorqual.engine.remote.engine import RemoteEngine

    if not model:
        raise ConfigError(
            "model= is required, because a server may serve several models",
            where=address,
            remedy="Give model=NAME.",
        )
    key = os.environ.get("RORQUAL_API_KEY", "")
    return RemoteEngine(address, model=model, api_key=key, seed_bits=seed_bits, concurrency=concurrency)


def load_engine_or_client(model: str, settings: EvalSettings) -> Any:
    """Return an engine for a run folder, or a client for a server's address."""
    if model.startswith(REMOTE):
        return load_client(model, settings.model, seed_bits=settings.seed_bits, concurrency=settings.concurrency)
    from rorqual.engine.engine import Engine

    check_device(settings.device)
    return Engine(
        Path(model),
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads or available_cores(),
        record_experts=False,
        backend=settings.backend,
    )


def evaluation_file(model: str, settings: EvalSettings) -> Path | None:
    """Return the path at which the evaluation's result is saved. If the setting `out` is given, the path is `out`.

    The default path for a run is a file in the run's `evals/` folder, named by task, split and thinking mode, or by the text
    file. The default for a server or a cascade is None.
    """
    if settings.out:
        return Path(settings.out)
    if model.startswith((*REMOTE, CASCADE)):
        return None
    name = re.sub(r"[^\w.]+", "-", settings.task or Path(settings.data).name).strip("-.")
    kind = f"{settings.split}-{settings.thinking}" if settings.task else "loss"
    return Path(model) / "evals" / f"{name}-{kind}.json"


def check_same_settings(file: Path | None, settings: EvalSettings) -> None:
    """Raise ConfigError if the default file of a result contains a result of other settings.

    A file that `out` names is replaced. A file without settings, of an older Rorqual version, is replaced too.
    """
    if file is None or settings.out or not file.is_file():
        return
    stored = read_json(file, "the evaluation", "Delete the file.").get("settings", {})
    now = settings.model_dump(mode="json").items()
    if other := [f"{key}={stored[key]}, not {value}" for key, value in now if stored.get(key, value) != value]:
        raise ConfigError(
            f"this file is of an evaluation with other settings: {'; '.join(other)}",
            where=str(file),
            remedy=f"Give out=FILE.json for a second file, or out={file} to replace this one.",
        )


def warn_if_trained_on(model: str, data: Path) -> None:
    """Print a warning if the file `data` is training data of the run `model` or of an ancestor."""
    if data.is_file() and was_trained_on(RunDir(Path(model)), data):
        print(
            f"  {model} was trained on this file, so the accuracy does not show what the model does with new problems.\n"
            "  Keep some rows in a file that no training reads, and evaluate on that file.",
            file=sys.stderr,
        )


def was_trained_on(run: RunDir, data: Path) -> bool:
    """Return whether `data` is the training data of `run`, of the run that `run` started from, or of any earlier run from
    which that run descends."""
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

If row data were read as plain text, the loss would include the JSON keys and braces.
"""


def held_out_text(path: str) -> str:
    """Return the held-out last tenth of a text file. Raises ConfigError for a file of row data, such as JSONL or Parquet."""
    from rorqual.data.source.text import read_text_split

    if Path(path).suffix.lower() in ROWS:
        raise ConfigError(
            "this file holds rows, but this command reads plain text",
            where=path,
            remedy="Give a text file. For rows of questions and answers, add task=messages or task=./mine.py:Class.",
        )
    return read_text_split(Path(path)).validation


def named_texts(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the names and the held-out texts of files. The name `kinds` stands for the passages of all kinds."""
    from rorqual.data.passages import KINDS, load_passage

    texts = [(name, held_out_text(name)) for name in names if name != "kinds"]
    return texts + [(kind, load_passage(kind)) for kind in KINDS if "kinds" in names]
