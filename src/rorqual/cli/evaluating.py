"""Run `rorqual eval` on a task. Answers are saved as they arrive, so an interrupted evaluation can resume."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

import rorqual
from rorqual.cli.measure import REMOTE, EvalSettings, generator
from rorqual.core.records import RunDir
from rorqual.data.chat.find import TEMPLATE_FILE
from rorqual.engine.weights import ROUNDING
from rorqual.evals import run
from rorqual.evals.answer_cache import AnswerCache
from rorqual.evals.evaluation import Evaluation
from rorqual.ops.backends import arithmetic_of
from rorqual.tasks.base import Task

T = TypeVar("T")
NO_WEIGHTS = frozenset({"optim.safetensors", "state.json"})
"""Checkpoint files that only training reads."""


def measure(
    model: str, settings: EvalSettings, task: Task, file: Path | None, progress: Callable[[int, int], None]
) -> Evaluation:
    """Evaluate `model` on `task` and save the evaluation in `file`.

    Until then, answers are cached in a file next to it. The same command resumes from them.
    """
    engine, made = _load(model, settings)
    with AnswerCache(engine, file, made) as kept:
        if kept.count:
            _say(f"Reusing {kept.count:,} answers from {kept.path}. Remove this file to start over.")
        try:
            found = run.evaluate(kept, task, progress=progress, model=model, **settings.asked())
            if file is not None:
                found.save(file)
        except BaseException:
            if file is not None and kept.count:
                _say(f"Saved {kept.count:,} answers in {kept.path}. The same command resumes from them.")
            elif file is None and kept.answered and model.startswith(REMOTE):
                _say(f"{kept.answered:,} answers are lost. Give out=FILE.json to save answers as they arrive.")
            raise
        if kept.refusals:
            more = f" The same command retries them; the other answers are in {kept.path}." if kept.path else ""
            _say(f"{len(kept.refusals):,} requests failed and are ungraded.{more} The first: {kept.refusals[0]}")
        else:
            kept.forget()
    return found


def _say(text: str) -> None:
    print(f"\n{text}", file=sys.stderr)


def _load(model: str, settings: EvalSettings) -> tuple[Any, dict[str, Any]]:
    """Return the engine, and everything but the requests that its answers depend on."""
    if model.startswith(REMOTE):
        return generator(model, settings), {
            "address": model,
            "model": settings.model,
            "seed_bits": settings.seed_bits,
        }
    engine, print_ = loaded(RunDir(Path(model)), lambda: generator(model, settings))
    where = {"dtype": settings.dtype, "device": settings.device, "backend": arithmetic_of(settings.backend)}
    return engine, {"run": print_, **where, **arithmetic()}


def loaded(run: RunDir, load: Callable[[], T]) -> tuple[T, str]:
    """Return the result of `load` and the fingerprint of the checkpoint that it loaded.

    `load` reads the run's newest checkpoint. It is called again if training wrote a newer one in the meantime.
    """
    while True:
        checkpoint = run.checkpoint()
        found = load()
        if run.checkpoint() == checkpoint:
            return found, fingerprint(run, checkpoint)
        del found  # free its memory before the next load


def arithmetic() -> dict[str, Any]:
    """Return the versions that the exact bits of a local engine's results depend on."""
    return {"rorqual": rorqual.__version__, "torch": torch.__version__, "rounding": ROUNDING}


def fingerprint(run: RunDir, checkpoint: Path) -> str:
    """Return a SHA-256 of a run's settings, tokenizer, chat template (if any) and a checkpoint's weights."""
    digest = hashlib.sha256()
    weights = (file for file in sorted(checkpoint.rglob("*")) if file.name not in NO_WEIGHTS)
    for file in (run.config_file, run.tokenizer_file, run.path / TEMPLATE_FILE, *weights):
        if file.is_file():
            digest.update(f"{file.relative_to(run.path)} {file.stat().st_size}\n".encode())
            with open(file, "rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
