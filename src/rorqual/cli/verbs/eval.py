"""The command `rorqual eval MODEL task=NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.eval_settings import (
    CASCADE,
    EvalSettings,
    evaluation_file,
    split_cascade_models,
    warn_if_trained_on,
)
from rorqual.cli.progress import progress_bar_callback
from rorqual.cli.settings import Settings, parse_settings
from rorqual.core.errors import ConfigError
from rorqual.core.records import write_atomic


def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Run folder, a server's http://... address, or cascade=STUDENT,TEACHER."),
    ],
    settings: Settings = None,
) -> None:
    """Evaluate a model on a task.

    Shows the model's accuracy with its 95 % interval, and the accuracy of the best baseline. After an interruption, the same
    command resumes.

    Without a task, data=FILE.txt names a plain text file, and the command reports the loss per token and per character. The
    loss is computed on the last tenth of the text, in windows of window= tokens (default: the model's context length).
    """
    chosen = parse_settings(EvalSettings, settings)
    if not chosen.task and not chosen.data:
        raise ConfigError("no task and no data", where="command line", remedy="Give task=NAME or data=FILE.txt.")
    if not chosen.task and model.startswith(CASCADE):
        raise ConfigError("a cascade answers problems", where="command line", remedy="Give task=NAME.")

    from rorqual.cli.evaluating import evaluate_and_save, loss_on_text

    if not chosen.task:
        print(loss_on_text(model, chosen).report())
        print(f"  The loss of each passage: {evaluation_file(model, chosen)}")
        return

    from rorqual.cli.cascading import measure_cascade
    from rorqual.evals import table
    from rorqual.evals.cascade_page import cascade_page, cascade_table
    from rorqual.evals.votes import refine_results, rule_results
    from rorqual.generate.output import check_writable_path
    from rorqual.tasks.find import load_task

    for name in ("page", "sure"):
        if getattr(chosen, name) not in ("", None) and not model.startswith(CASCADE):
            raise ConfigError(
                f"only a cascade has the key '{name}'",
                where="command line",
                remedy="Leave it out, or evaluate cascade=STUDENT,TEACHER.",
            )
    models = split_cascade_models(model.removeprefix(CASCADE)) if model.startswith(CASCADE) else (model,)
    file = evaluation_file(model, chosen)
    for place in (*filter(None, [file]), *(Path(name) for name in (chosen.page, chosen.verifier_data) if name)):
        check_writable_path(place)
    task = load_task(chosen.task, data=Path(chosen.data) if chosen.data else None, options=chosen.options)
    show = progress_bar_callback(f"eval {task.name}", "answer")
    if len(models) == 2:
        cascade = measure_cascade(models, chosen, task, file, show)
        print(cascade_table(cascade))
        if chosen.page:
            write_atomic(Path(chosen.page), cascade_page(cascade).encode())
            print(f"  {chosen.page}: accuracy over cost, and the calibration")
    else:
        evaluation = evaluate_and_save(model, chosen, task, file, show)
        print(table.table(evaluation))
        if chosen.votes or chosen.best_of:
            print(table.rules_table("one answer from several samples", rule_results(evaluation)))
        if chosen.refine:
            print(table.rules_table("replies before and after checking", refine_results(evaluation)))
    for name in models:
        warn_if_trained_on(name, Path(chosen.data))
    if file is not None:
        print(f"  Every answer: {file}")
