"""`rorqual eval cascade=STUDENT,TEACHER`: evaluate both models on the same problems, and calibrate the student's confidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rorqual.cli.evaluating import answers
from rorqual.cli.measure import REMOTE, EvalSettings
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir
from rorqual.evals.cascade import Cascade, calibrate
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.run import pick
from rorqual.model.account import account
from rorqual.model.load.run import read_model_config
from rorqual.tasks.base import Task

OTHER_WAYS = ("best_of", "verifier", "verifier_data", "refine")
"""Settings of other ways to get an answer, which a cascade does not use."""


def measure_cascade(
    models: tuple[str, str], settings: EvalSettings, task: Task, file: Path | None, progress: Callable[[int, int], None]
) -> Cascade:
    """Evaluate the cascade and save it in `file`. Answers are kept next to `file` until then, so the same command resumes.

    The student answers `settings.count` problems of the dev split for the calibration, and then the problems of `settings.split`. The
    teacher answers the latter once each.
    """
    if settings.split == "dev":
        raise ConfigError(
            "the student's confidence is calibrated on the dev split", where="split=dev", remedy="Give split=test."
        )
    given = [name for name in OTHER_WAYS if getattr(settings, name)] + ["stop_when"] * (settings.stop_when != "never")
    if given:
        raise ConfigError(
            f"a cascade does not use the key '{given[0]}'",
            where="command line",
            remedy="Leave it out. votes=N gives the student's confidence by votes.",
        )
    for model in models:
        if not model.startswith(REMOTE):
            RunDir(Path(model)).checkpoint()  # a missing run is refused before the first answer
    asked = settings.asked()
    once = {"votes": False, "params": replace(asked["params"], n=1)}
    pick(
        task, "dev", settings.count, settings.seed, settings.per_family
    )  # an empty dev split is refused before the first answer
    student, teacher = models
    kept: set[Path] = set()

    def evaluated(model: str, **changes: Any) -> Evaluation:
        return answers(model, settings, task, file, progress, {**asked, **changes}, kept=kept)

    dev = evaluated(student, split="dev")
    calibration = calibrate(dev)
    result = Cascade(
        student=evaluated(student),
        teacher=evaluated(teacher, **once),
        calibration=calibration,
        sure=settings.sure,
        flops=None if any(model.startswith(REMOTE) for model in models) else (_flops(student), _flops(teacher)),
    )
    if file is not None:
        result.save(file)
        for path in kept:
            path.unlink(missing_ok=True)
    return result


def _flops(run: str) -> float:
    """Return the FLOPs of one generated token, without attention to earlier tokens."""
    return float(account(read_model_config(RunDir(Path(run)))).flops)
