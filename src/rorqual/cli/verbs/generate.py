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

    After an interruption, the same command resumes and writes the same output file. Each row has one of the columns
    prompt (one user message), messages or prompt_ids. prompt=COLUMN takes the prompt from COLUMN instead of the column `prompt`,
    and prompt=A,B joins the columns A and B by a blank line. Rows may also have an id and sampling keys of their own. All other fields of a row
    are copied to the output. If a row cannot be answered, the row's output line contains the error, the other rows are still
    answered, and the exit code is 1. If `rorqual teach` wrote the run, the defaults of the run's task (defaults.json) apply
    to prompts and messages for keys that are not given, except with raw=true.

    If `run` is the whole folder that `rorqual teach` wrote, what it chose answers: each row gets the columns answer, probability
    and, with a promise, sure. The prompt has the columns of the training examples. out=FILE.csv writes a table.
    """
    from rorqual.cli.generating import generate_file

    errors, summary = generate_file(file, settings)
    print("\n".join(summary))
    if errors:
        raise typer.Exit(1)
