"""Implementation of `rorqual compare RUN golden=FILE`. An interrupted command resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rorqual.cli.eval_settings import REMOTE, EvalSettings, evaluation_file, warn_if_trained_on
from rorqual.cli.evaluating import evaluate_and_save
from rorqual.cli.progress import progress_bar_callback
from rorqual.cli.settings import WHERE
from rorqual.core.config import parse_config
from rorqual.core.errors import ConfigError, suggest_name
from rorqual.core.records import NO_DEFAULTS, RunDir
from rorqual.generate.output import check_writable_path
from rorqual.teach.golden import GoldenAnswers, agreement_table, differences_table, expected_note

KEYS = (
    "out", "thinking", "max_tokens", "temperature", "seed", "system", "think_budget", "calculator", "threads", "device", "dtype",
    "backend", "model", "seed_bits", "concurrency",
)  # fmt: skip
"""The settings of `rorqual eval` that `rorqual compare RUN golden=FILE` has, too."""


def compare_with_golden(model: str, golden: str, confidence: float, values: dict[str, str]) -> None:
    """Hold a model against the golden answers of a file: print the agreement, and save every answer. `values` are settings in `KEYS`.

    The defaults of the run (`defaults.json`) apply, as in `rorqual generate`.
    """
    if unknown := [key for key in values if key not in KEYS]:
        known = (*KEYS, "golden", "confidence")
        raise ConfigError(f"unknown key '{unknown[0]}'", where=WHERE, remedy=suggest_name(unknown[0], known))
    is_run = not model.startswith(REMOTE) and RunDir(Path(model)).config_file.is_file()
    defaults = RunDir(Path(model)).task_defaults() if is_run else NO_DEFAULTS
    own = defaults.model_dump(exclude_none=True, exclude={"grammar"})
    settings = parse_config(EvalSettings, own | values | {"task": "golden", "data": golden}, where=WHERE)
    file = evaluation_file(model, settings)
    if file is not None:
        check_writable_path(file)
    task = GoldenAnswers(Path(golden))
    problems, params = task.load("test"), settings.evaluate_arguments()["params"]
    evaluation = evaluate_and_save(
        model,
        settings,
        task,
        file,
        progress_bar_callback("compare golden", "answer"),
        problems=problems,
        measured={},
        params=replace(params, grammar=defaults.grammar),
    )
    note = expected_note(evaluation, problems, confidence)
    print("\n".join(filter(None, [agreement_table(evaluation, confidence).text(), note])))
    print(differences_table(evaluation).text())
    warn_if_trained_on(model, Path(golden))
    if file is not None:
        print(f"  Every answer: {file}")
