"""The command `rorqual sparsify RUN OUT`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.machine import cores
from rorqual.cli.settings import WHERE, Settings, check_device, pairs
from rorqual.core.config import Config, Natural, parse, scalar
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir


class SparsifyCommand(Config):
    """Settings of `rorqual sparsify` that do not change results."""

    threads: Natural = 0
    quiet: bool = False


def sparsify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run of a model with attention of kind mla.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder. The sparse model is in OUT/sparse.")],
    settings: Settings = None,
) -> None:
    """Turn a model with latent attention into one with DeepSeek Sparse Attention.

    The stages are: add an indexer to each attention layer, train only the indexers (OUT/warmup), and train the whole model with
    sparse attention (OUT/sparse). After an interruption, the same command resumes.

    Keys: index_topk=N (required: the number of positions that each query attends to), index_n_heads=, index_head_dim=,
    index_dtype=float8_e4m3fn (index keys are cached in FP8), warmup=STEPS, warmup_lr=, steps=, lr=, data=FILE or task=NAME
    (default: the data that the run was trained on), options=, rows=, row=, seed=, device=, dtype=, threads=N, quiet=true.
    """
    values = pairs(settings)
    command = parse(
        SparsifyCommand, {key: values.pop(key) for key in SparsifyCommand.model_fields if key in values}, where=WHERE
    )

    from rorqual.recipes.sparsify import SparsifyConfig
    from rorqual.recipes.sparsify import sparsify as run_stages

    given = {key: scalar(value) for key, value in values.items()}
    config = parse(SparsifyConfig, {"index_topk": 1, **given}, where=WHERE)
    if "index_topk" not in given:
        raise ConfigError(
            "key 'index_topk' is missing",
            where=WHERE,
            remedy="Give the number of positions that each query attends to, such as a quarter of the row length: index_topk=64.",
        )
    check_device(config.device)
    sparse = run_stages(RunDir(run), out, config, threads=command.threads or cores(), quiet=command.quiet)
    if not command.quiet:
        print(f"{sparse.path}\n  Next: rorqual chat {sparse.path}")
