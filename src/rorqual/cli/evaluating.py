"""What `rorqual eval` does with a task: every answer is kept as it comes, and an evaluation that broke off goes on."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import rorqual
from rorqual.cli.measure import REMOTE, EvalSettings, generator
from rorqual.core.records import RunDir
from rorqual.data.chat.find import TEMPLATE_FILE
from rorqual.engine.weights import ROUNDING
from rorqual.evals import run
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.kept import Kept
from rorqual.tasks.base import Task


def measure(
    model: str, settings: EvalSettings, task: Task, file: Path | None, progress: Callable[[int, int], None]
) -> Evaluation:
    """The task's problems put to `model`, saved in `file`. Answers are kept beside it until then: the same command goes on from them."""
    with Kept(generator(model, settings), file, _made(model, settings)) as kept:
        try:
            found = run.evaluate(kept, task, progress=progress, model=model, **settings.asked())
            if file is not None:
                found.save(file)
        except BaseException:
            if kept.count:
                print(
                    f"\nAnswers kept: {kept.count:,}, in {kept.path}. The same command goes on from them.",
                    file=sys.stderr,
                )
            elif model.startswith(REMOTE) and file is None:
                print("\nNo answer is kept: out=FILE.json keeps each as it comes.", file=sys.stderr)
            raise
        kept.forget()
    return found


def _made(model: str, settings: EvalSettings) -> dict[str, Any]:
    """What an answer depends on beside what is asked."""
    if model.startswith(REMOTE):
        return {"address": model, "model": settings.model, "seed_bits": settings.seed_bits}
    where = {"dtype": settings.dtype, "device": settings.device}
    return {"run": fingerprint(RunDir(Path(model))), **where, **arithmetic()}


def arithmetic() -> dict[str, Any]:
    """The versions that a local engine's last bits depend on."""
    return {"rorqual": rorqual.__version__, "torch": torch.__version__, "rounding": ROUNDING}


def fingerprint(run: RunDir) -> str:
    """Of a run's settings, its tokenizer, its template where it has one, and its newest checkpoint."""
    digest = hashlib.sha256()
    for file in (run.config_file, run.tokenizer_file, run.path / TEMPLATE_FILE, *sorted(run.checkpoint().rglob("*"))):
        if file.is_file():
            digest.update(f"{file.relative_to(run.path)} {file.stat().st_size}\n".encode())
            with open(file, "rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
