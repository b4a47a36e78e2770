"""The command `rorqual train RECIPE key=value ...`."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from rorqual.cli.machine import available_cores
from rorqual.cli.settings import Settings, check_device, pop_settings, split_pairs
from rorqual.core.config import Config, Count, Natural, Positive
from rorqual.core.records import RunDir


class TrainCommand(Config):
    """Settings of `rorqual train` that do not change results."""

    out: str = Field("", description="run folder; default: runs/RECIPE")
    rollout: str = Field("", description="addresses of servers that sample rollouts (rorqual serve rollout_dir=)")
    threads: Natural = Field(0, description="threads of each process; 0: all cores")
    nproc: Count = Field(1, description="processes on this machine that share the work; the weights have the same bits")
    rank_timeout: Positive = Field(
        600.0, description="seconds that the processes of nproc= or torchrun wait for each other"
    )
    track: str = Field("", description="tensorboard or wandb, or both, separated by a comma")
    quiet: bool = Field(False, description="print no progress")


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="pretrain, sft, dpo, grpo, distil or on_policy.")],
    settings: Settings = None,
) -> None:
    """Train a model with a recipe. After an interruption, the same command resumes.

    `rorqual train RECIPE --help` lists the keys of a recipe. A key with dots sets any field of the run's configuration, such as
    optim.lr=3e-4. tune.kind=lora or tune.kind=esft trains a part of the model from=RUN. If a server samples the rollouts, the
    server's rollout key is read from RORQUAL_ROLLOUT_KEY.
    """
    values = split_pairs(settings)
    command = pop_settings(TrainCommand, values)
    out = RunDir(Path(command.out or f"runs/{recipe}"))
    if command.nproc > 1:
        from rorqual.dist.launch import launch

        given = [pair for pair in settings or [] if not pair.startswith("nproc=")]
        logs = out.path / ".ranks"
        launch(["-m", "rorqual", "train", recipe, *given], command.nproc, logs=logs, newest=out.newest_complete_step)
        return

    from rorqual.dist.ranks import current_ranks, joined
    from rorqual.engine.remote.rollouts import connect
    from rorqual.recipes import make_run
    from rorqual.train.loop import fit
    from rorqual.train.track import open_trackers

    run = make_run(recipe, values)
    check_device(run.device)
    engine = partial(connect, command.rollout.split(","), api_keys=os.environ.get("RORQUAL_ROLLOUT_KEY", "").split(","))
    cores = max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    trackers = command.track.split(",") if command.track else []
    with joined(command.rank_timeout), open_trackers(trackers if current_ranks().first else [], out) as observe:
        fit(
            run,
            out,
            threads=command.threads or cores,
            quiet=command.quiet,
            observe=observe,
            rollout_engine=engine if command.rollout else None,
        )
        quiet = command.quiet or not current_ranks().first
    if not quiet:
        verb = "generate PROMPTS run=" if run.recipe == "pretrain" else "chat "
        print(f"{out.path}\n  Next: rorqual {verb}{out.path}")
