"""What `rorqual eval` does with a task: every answer is kept as it comes, and an evaluation that broke off goes on."""

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
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.kept import Kept
from rorqual.ops.backends import arithmetic_of
from rorqual.tasks.base import Task

T = TypeVar("T")
NO_WEIGHTS = frozenset({"optim.safetensors", "state.json"})
"""Files of a checkpoint that only training reads."""


def measure(
    model: str, settings: EvalSettings, task: Task, file: Path | None, progress: Callable[[int, int], None]
) -> Evaluation:
    """The task's problems put to `model`, saved in `file`. Answers are kept beside it until then: the same command goes on from them."""
    engine, made = _load(model, settings)
    with Kept(engine, file, made) as kept:
        if kept.count:
            _say(
                f"{kept.count:,} answers are in {kept.path} from before, and are not asked for again. Remove it to begin anew."
            )
        try:
            found = run.evaluate(kept, task, progress=progress, model=model, **settings.asked())
            if file is not None:
                found.save(file)
        except BaseException:
            if file is not None and kept.count:
                _say(f"Answers kept: {kept.count:,}, in {kept.path}. The same command goes on from them.")
            elif file is None and kept.answered and model.startswith(REMOTE):
                _say(f"{kept.answered:,} answers are lost: out=FILE.json keeps each as it comes.")
            raise
        if kept.refusals:
            more = (
                f"; the others are kept in {kept.path}, and the same command asks for these again" if kept.path else ""
            )
            _say(f"{len(kept.refusals):,} requests were refused and are ungraded{more}: {kept.refusals[0]}")
        else:
            kept.forget()
    return found


def _say(text: str) -> None:
    print(f"\n{text}", file=sys.stderr)


def _load(model: str, settings: EvalSettings) -> tuple[Any, dict[str, Any]]:
    """What answers, and all that its answers depend on beside what is asked."""
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
    """What `load` makes of a run's newest checkpoint, and the fingerprint of that one, also where a training writes another meanwhile."""
    while True:
        checkpoint = run.checkpoint()
        found = load()
        if run.checkpoint() == checkpoint:
            return found, fingerprint(run, checkpoint)
        del found  # before the next is loaded


def arithmetic() -> dict[str, Any]:
    """The versions that a local engine's last bits depend on."""
    return {"rorqual": rorqual.__version__, "torch": torch.__version__, "rounding": ROUNDING}


def fingerprint(run: RunDir, checkpoint: Path) -> str:
    """Of a run's settings, its tokenizer, its template where it has one, and the weights of a checkpoint."""
    digest = hashlib.sha256()
    weights = (file for file in sorted(checkpoint.rglob("*")) if file.name not in NO_WEIGHTS)
    for file in (run.config_file, run.tokenizer_file, run.path / TEMPLATE_FILE, *weights):
        if file.is_file():
            digest.update(f"{file.relative_to(run.path)} {file.stat().st_size}\n".encode())
            with open(file, "rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
