"""`rorqual lab NAME`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.machine import cores


def lab(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The experiment; an unknown name lists them.")],
    seeds: Annotated[int, typer.Option(min=0, help="How many seeds; 0: as many as the published result has.")] = 0,
    first_seed: Annotated[
        int, typer.Option(min=0, help="The first of them; 0: the published result's. Settings were chosen below it.")
    ] = 0,
    budget: Annotated[
        float, typer.Option(min=0, help="Core-minutes for all seeds; 0: the full amounts of work.")
    ] = 0.0,
    out: Annotated[Path, typer.Option(help="The folder; experiments share what they have in common in it.")] = Path(
        "runs/lab"
    ),
    workers: Annotated[int, typer.Option(min=0, help="Jobs side by side, a core each; 0: every core.")] = 0,
) -> None:
    """Repeat an experiment on a claim of the DeepSeek story, with seeds and controls; its cost is said before it starts.

    Stopped, it goes on where it was when the same command is given again.
    """
    from rorqual.lab.find import find_experiment
    from rorqual.lab.run import run_lab

    experiment = find_experiment(name)
    count, first = seeds or experiment.seeds, first_seed or experiment.first_seed
    words = ["rorqual lab", name, f"--seeds {count}"]
    words += [f"--first-seed {first}"] * (first != experiment.first_seed) + [f"--budget {budget:g}"] * bool(budget)
    chosen = tuple(range(first, first + count))
    run_lab(name, out, seeds=chosen, budget=budget, workers=workers or cores(), command=" ".join(words))
