"""The command `rorqual teach FILE`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.machine import cores, memory
from rorqual.cli.settings import Settings, pairs
from rorqual.core.config import parse


def teach(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL, JSON, CSV, TSV or Parquet file of examples.")],
    settings: Settings = None,
) -> None:
    """Teach a small pretrained model the task of a file of examples.

    The file is checked and divided into train, dev and test. The command measures baselines, trains with LoRA, reinforces where that
    can help, measures the model on the test split, and writes a report. After an interruption, the same command resumes.

    Keys: minutes=20 (from the start, without the baselines), base=RUN|FOLDER|FILE.gguf|ORG/NAME (default: SmolLM2-135M-Instruct),
    test=FILE (test examples; default: a part of FILE), prompt=, answer=, reasoning= (columns; several answer columns become JSON),
    grader=./mine.py:function (prompt, gold answer, reply -> bool), rule=./mine.py:function (prompt -> answer; a baseline of your own),
    teacher=ADDRESS|RUN (writes reasons), with model=, api_key= (or RORQUAL_API_KEY), budget=, price_in=, price_out=; count=500 (most
    test examples), track=tensorboard,wandb,trackio (training metrics), seed=0, threads= (default: all cores), out=runs/NAME, quiet=.
    """
    values = pairs(settings)
    api_key = values.pop("api_key", "") or os.environ.get("RORQUAL_API_KEY", "")
    out = Path(values.pop("out", "") or Path("runs") / file.stem)

    from rorqual.cli.bytes_done import BytesDone
    from rorqual.teach.base_model import refuse_memory
    from rorqual.teach.config import TeachConfig
    from rorqual.teach.run import teach as run

    config = parse(TeachConfig, {"file": str(file), **values}, where="command line")
    if not config.base:
        refuse_memory(memory()[1])
    run(
        config,
        out,
        threads=config.threads or cores(),
        import_progress=BytesDone("import", quiet=config.quiet),
        api_key=api_key,
    )
