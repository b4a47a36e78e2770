"""The command `rorqual train RECIPE key=value ...`."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.machine import cores
from rorqual.cli.settings import WHERE, Settings, check_device, pairs
from rorqual.core.config import Config, Natural, parse
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir


class TrainCommand(Config):
    """Settings of `rorqual train` that do not change results.

    `rollout`: address of a server that samples rollouts. `track`: names of trackers, separated by commas.
    """

    out: str = ""
    rollout: str = ""
    threads: Natural = 0
    track: str = ""
    quiet: bool = False


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="pretrain, sft, grpo, distil or on_policy.")],
    settings: Settings = None,
) -> None:
    """Train a model with a recipe. After an interruption, the same command resumes.

    Keys: out=FOLDER (default: runs/RECIPE), threads=N, quiet=true, device=, dtype=, arguments of the recipe (data=FILE,
    task=NAME, from=RUN, seed=, steps=, size=, ...) and any field of the run by its dotted name, such as optim.lr=3e-4.
    tune.kind=lora or tune.kind=esft trains a part of the model from=RUN (docs/how-to/adapters.md). By default, grpo and
    on_policy sample rollouts in this process. With rollout=http://HOST:PORT, the server at this address samples the rollouts;
    start that server with rollout_dir= (docs/how-to/serve.md). The server's rollout key is read from RORQUAL_ROLLOUT_KEY.
    With track=tensorboard, wandb or trackio (or several, separated by commas), the metrics are also written for these
    trackers, to a folder of that name in the run folder.
    """
    values = pairs(settings)
    command = parse(
        TrainCommand, {key: values.pop(key) for key in TrainCommand.model_fields if key in values}, where=WHERE
    )
    if command.threads < 0:
        raise ConfigError(f"threads={command.threads} is negative", where=WHERE, remedy="Use 1 or more.")

    from rorqual.engine.remote.rollout import RemoteRolloutEngine
    from rorqual.recipes import make_run
    from rorqual.train.loop import fit
    from rorqual.train.track import track

    run = make_run(recipe, values)
    check_device(run.device)
    out = RunDir(Path(command.out or f"runs/{recipe}"))
    engine = partial(RemoteRolloutEngine, command.rollout, api_key=os.environ.get("RORQUAL_ROLLOUT_KEY", ""))
    with track(command.track.split(",") if command.track else [], out) as observe:
        fit(
            run,
            out,
            threads=command.threads or cores(),
            quiet=command.quiet,
            observe=observe,
            rollout_engine=engine if command.rollout else None,
        )
    if not command.quiet:
        print(f"{out.path}\n  Next: rorqual chat {out.path}")
