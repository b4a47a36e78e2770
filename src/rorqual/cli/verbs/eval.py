"""The command `rorqual eval RUN|http://ADDRESS task=NAME`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.measure import EvalSettings, evaluation_file, loss_on_text, was_trained_on
from rorqual.cli.settings import Settings, read
from rorqual.core.errors import ConfigError
from rorqual.core.log import Progress
from rorqual.core.records import RunDir


def evaluate(
    model: Annotated[str, typer.Argument(metavar="RUN|ADDRESS", help="Run folder, or a server's http://... address.")],
    settings: Settings = None,
) -> None:
    """Evaluate a model on a task.

    Shows the accuracy with its 95 % interval, and the accuracy of the best baseline. After an interruption, the same command resumes.

    Keys: task=NAME (families, families:add,gcd, gsm8k, math500, folio, knights, messages, everyday, long, gym:NAME, ./mine.py:Class),
    data=FILE, split=test, count=100, seed=0, thinking=auto|on|off, temperature=0, samples=1, max_tokens=1024, per_family=false,
    votes=N (N samples, and their majority), think_budget=N (maximum thinking tokens), options={...}, out=FILE.json (default: evals/
    in the run's folder; answers of a server are saved only with out=), threads=, device=, dtype=, backend=torch-invariant|torch.

    Keys for a server: model=NAME, concurrency=8, seed_bits=64|31.

    Without a task, data=FILE.txt names a plain text file, and the command reports the loss per token and per character. The loss
    covers the last tenth of the text, in windows of window= tokens (default: the model's context length).
    """
    chosen = read(EvalSettings, settings)
    if not chosen.task and not chosen.data:
        raise ConfigError("no task and no data", where="command line", remedy="Give task=NAME or data=FILE.txt.")
    if not chosen.task:
        print(loss_on_text(model, chosen))
        return

    from rorqual.cli.evaluating import measure
    from rorqual.evals import table
    from rorqual.generate.output import check_place
    from rorqual.tasks.find import load_task

    if (file := evaluation_file(model, chosen)) is not None:
        check_place(file)
    task = load_task(chosen.task, data=Path(chosen.data) if chosen.data else None, options=chosen.options)
    bar = Progress(f"eval {task.name}", chosen.count, unit="answer")

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done)

    evaluation = measure(model, chosen, task, file, show)
    print(table.table(evaluation))
    if chosen.votes:
        print(table.votes_table(evaluation))
    if Path(chosen.data).is_file() and was_trained_on(RunDir(Path(model)), Path(chosen.data)):
        print(
            f"  {model} was trained on this file, so the accuracy does not show what the model does with new problems.\n"
            "  Keep some rows in a file that no training reads, and evaluate on that file.",
            file=sys.stderr,
        )
    if file is not None:
        print(f"  Every answer: {file}")
