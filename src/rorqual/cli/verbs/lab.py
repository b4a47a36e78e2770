"""The command `rorqual lab NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.machine import available_cores


def lab(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Experiment. An unknown name lists all experiments.")],
    seeds: Annotated[int, typer.Option(min=0, help="Number of seeds; 0: as in the published result.")] = 0,
    first_seed: Annotated[
        int,
        typer.Option(
            min=0, help="First seed; 0: as in the published result. Smaller seeds were used to choose settings."
        ),
    ] = 0,
    budget: Annotated[
        float, typer.Option(min=0, help="Core-minutes for all seeds together; 0: the full amount of work.")
    ] = 0.0,
    out: Annotated[Path, typer.Option(help="Output folder. Experiments in one folder share their common runs.")] = Path(
        "runs/lab"
    ),
    workers: Annotated[int, typer.Option(min=0, help="Parallel jobs, one core each; 0: all cores.")] = 0,
) -> None:
    """Repeat an experiment with several seeds and controls.

    Each experiment tests a claim about DeepSeek-style training. The command prints the expected cost before the experiment
    starts. After an interruption, the same command resumes.
    """
    from rorqual.lab.experiment_run import run_lab
    from rorqual.lab.find import find_experiment

    experiment = find_experiment(name)
    count, first = seeds or experiment.seeds, first_seed or experiment.first_seed
    words = ["rorqual lab", name, f"--seeds {count}"]
    words += [f"--first-seed {first}"] * (first != experiment.first_seed) + [f"--budget {budget:g}"] * bool(budget)
    chosen = tuple(range(first, first + count))
    run_lab(name, out, seeds=chosen, budget=budget, workers=workers or available_cores(), command=" ".join(words))
