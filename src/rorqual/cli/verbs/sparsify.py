"""The command `rorqual sparsify RUN OUT`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from rorqual.cli.machine import available_cores
from rorqual.cli.settings import WHERE, Settings, check_device, pop_settings, split_pairs
from rorqual.core.config import Config, Natural, parse_config, parse_scalar
from rorqual.core.records import RunDir


class SparsifyCommand(Config):
    """Settings of `rorqual sparsify` that do not change results."""

    threads: Natural = Field(0, description="threads; 0: all cores")
    quiet: bool = Field(False, description="print no progress")


def sparsify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run of a model with attention of kind mla.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder. The sparse model is in OUT/sparse.")],
    settings: Settings = None,
) -> None:
    """Turn a model with latent attention into a model with DeepSeek Sparse Attention.

    The stages are: add an indexer to each attention layer, train only the indexers (OUT/warmup), and train the whole model with
    sparse attention (OUT/sparse). After an interruption, the same command resumes.
    """
    values = split_pairs(settings)
    command = pop_settings(SparsifyCommand, values)

    from rorqual.recipes.sparsify import SparsifyConfig
    from rorqual.recipes.sparsify import sparsify as run_stages

    config = parse_config(SparsifyConfig, {key: parse_scalar(value) for key, value in values.items()}, where=WHERE)
    check_device(config.device)
    sparse = run_stages(RunDir(run), out, config, threads=command.threads or available_cores(), quiet=command.quiet)
    if not command.quiet:
        print(f"{sparse.path}\n  Next: rorqual chat {sparse.path}")
