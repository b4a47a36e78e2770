"""The command `rorqual compute RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from rorqual.cli.eval_settings import ProblemSettings
from rorqual.cli.machine import available_cores
from rorqual.cli.progress import progress_bar_callback
from rorqual.cli.settings import Settings, check_device, parse_settings
from rorqual.core.errors import ConfigError
from rorqual.core.records import write_atomic, write_json


class ComputeSettings(ProblemSettings):
    """Settings of `rorqual compute`."""

    page: str = Field("", description="HTML file")


def compute(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run of a model with a router that may choose identity experts.")
    ],
    settings: Settings = None,
) -> None:
    """Show how much computation each token takes.

    The command is for models whose router chooses a different number of experts for each token (kind zero). The model answers
    problems of a task, and the command prints the experts per token by part of the text, family, difficulty, verdict,
    position and token.
    """
    chosen = parse_settings(ComputeSettings, settings)
    check_device(chosen.device)
    if not chosen.task:
        raise ConfigError(
            "key 'task' is missing", where="command line", remedy="Give task=NAME, such as task=families."
        )

    from rorqual.engine.engine import Engine
    from rorqual.engine.request import SamplingParams
    from rorqual.evals.compute import compute_table, measure_compute
    from rorqual.evals.evaluating import pick_problems
    from rorqual.generate.output import check_writable_path
    from rorqual.tasks.find import load_task

    for file in filter(None, (chosen.out, chosen.page)):
        check_writable_path(Path(file))
    task = load_task(chosen.task, data=Path(chosen.data) if chosen.data else None, options=chosen.options)
    problems = pick_problems(task, chosen.split, chosen.count, chosen.seed, chosen.per_family)
    engine = Engine(
        run, device=chosen.device, dtype=chosen.dtype, threads=chosen.threads or available_cores(), record_experts=True
    )
    report = measure_compute(
        engine,
        task,
        problems,
        model=str(run),
        thinking=chosen.thinking,
        params=SamplingParams(max_tokens=chosen.max_tokens, temperature=chosen.temperature, seed=chosen.seed),
        progress=progress_bar_callback(f"compute {task.name}", "answer"),
    )
    print(compute_table(report))
    if chosen.out:
        write_json(Path(chosen.out), report.to_json())
        print(f"{chosen.out}: all values")
    if chosen.page:
        from rorqual.evals.compute_page import compute_page

        write_atomic(Path(chosen.page), compute_page(report, engine.tokenizer).encode())
        print(f"{chosen.page}: the tables, and replies coloured by experts")
