"""The command `rorqual generate FILE run=RUN out=OUT`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.settings import Settings


def generate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Prompts as .jsonl, .json, .csv, .tsv or .parquet.")],
    settings: Settings = None,
) -> None:
    """Generate completions for a file of prompts.

    After an interruption, the same command resumes and writes the same file. Each row has prompt (one user message), messages or
    prompt_ids. The prompt is the column `prompt`. prompt=COLUMN takes another column, and prompt=A,B joins columns by
    blank lines. Rows may also
    have an id and their own sampling keys. Further fields are copied to the output. If a row cannot be answered, its output line
    contains the error, the other rows still run, and the exit code is 1. In a run that `rorqual teach` made, prompts and messages
    have the defaults of its task (defaults.json) for keys that are not given, except with raw=true.
    """
    from rorqual.cli.generating import generate_file

    errors, summary = generate_file(file, settings)
    print("\n".join(summary))
    if errors:
        raise typer.Exit(1)
