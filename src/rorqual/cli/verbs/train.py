"""`rorqual train RECIPE key=value ...`"""

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
    """What belongs to this command and not to the run: it changes no figure. `rollout`: the address of a server that samples."""

    out: str = ""
    rollout: str = ""
    threads: Natural = 0
    quiet: bool = False


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="pretrain, sft, grpo, distil or on_policy.")],
    settings: Settings = None,
) -> None:
    """Train a recipe, or go on with it: the same command continues where it was.

    Keys: out=FOLDER (default runs/RECIPE), threads=N, quiet=true, device=, dtype=, what the recipe takes (data=FILE, task=NAME,
    from=RUN, seed=, steps=, size=, ...) and any field of the run by its dotted name, such as optim.lr=3e-4. With tune.kind=lora or
    tune.kind=esft a part of from=RUN is trained (docs/adapters.md). grpo and on_policy sample in this process, or at rollout=http://HOST:PORT,
    a `rorqual serve` with rollout_dir= (its key for rollouts in RORQUAL_ROLLOUT_KEY; docs/serve.md).
    """
    values = pairs(settings)
    mode = parse(
        TrainCommand, {key: values.pop(key) for key in TrainCommand.model_fields if key in values}, where=WHERE
    )
    if mode.threads < 0:
        raise ConfigError(f"threads={mode.threads}", where=WHERE, remedy="Use 1 or more.")

    from rorqual.engine.remote.rollout import RemoteRolloutEngine
    from rorqual.recipes import make_run
    from rorqual.train.loop import fit

    run = make_run(recipe, values)
    check_device(run.device)
    out = mode.out or f"runs/{recipe}"
    engine = partial(RemoteRolloutEngine, mode.rollout, api_key=os.environ.get("RORQUAL_ROLLOUT_KEY", ""))
    fit(
        run,
        RunDir(Path(out)),
        threads=mode.threads or cores(),
        quiet=mode.quiet,
        rollout_engine=engine if mode.rollout else None,
    )
    if not mode.quiet:
        print(f"{out}\n  Next: rorqual chat {out}")
