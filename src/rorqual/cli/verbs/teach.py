"""The command `rorqual teach FILE`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from rorqual.cli.machine import available_cores, total_and_free_memory
from rorqual.cli.settings import WHERE, Settings, pop_settings, split_pairs
from rorqual.core.config import Config, parse_config


class TeachCommand(Config):
    """Settings of `rorqual teach` that are not stored in the run."""

    out: str = Field("", description="output folder; default: runs/NAME")
    api_key: str = Field("", description="for a teacher's server: its key; default: RORQUAL_API_KEY")


def teach(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL, JSON, CSV, TSV or Parquet file of examples.")],
    settings: Settings = None,
) -> None:
    """Teach a small pretrained model the task of a file of examples.

    The examples are checked and divided into the splits train, dev and test. The command measures baselines, trains the model
    with LoRA, continues with reinforcement learning where that can help, measures the model on the test split, and writes a
    report. After an interruption, the same command resumes.
    """
    values = split_pairs(settings)
    command = pop_settings(TeachCommand, values)

    from rorqual.cli.progress import ByteProgressBar
    from rorqual.teach.base_model import refuse_too_little_memory
    from rorqual.teach.config import TeachConfig
    from rorqual.teach.stages import teach as run

    config = parse_config(TeachConfig, {"file": str(file), **values}, where=WHERE)
    if not config.base:
        refuse_too_little_memory(total_and_free_memory()[1])
    run(
        config,
        Path(command.out or Path("runs") / file.stem),
        threads=config.threads or available_cores(),
        import_progress=ByteProgressBar("import", quiet=config.quiet),
        api_key=command.api_key or os.environ.get("RORQUAL_API_KEY", ""),
    )
