"""The command `rorqual generate FILE run=RUN out=OUT`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.settings import Settings
from rorqual.core.sampling import PARAMS, GrammarType, Param, TextList, TokenBiases, TokenList


def generate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Prompts as .jsonl, .json, .csv, .tsv or .parquet.")],
    settings: Settings = None,
) -> None:
    """Generate completions for a file of prompts.

    After an interruption, the same command resumes and writes the same file. Each row has prompt (one user message), messages or
    prompt_ids. With prompt=COLUMN, another column is the prompt; several (prompt=A,B) are joined by blank lines. Rows may also
    have an id and their own sampling keys. Further fields are copied to the output. If a row cannot be answered, its output line
    contains the error, the other rows still run, and the exit code is 1. In a run that `rorqual teach` made, prompts and messages
    have the defaults of its task (defaults.json) for keys that are not given, except with raw=true.

    Keys: run=RUN|http://..., out=FILE.jsonl, prompt=, raw=false (true: continue each prompt as plain text), token_ids=false,
    logprobs=false, strict=false (true: stop at the first invalid row, before generation starts), slots=64, max_len=,
    threads=, device=, dtype=, backend=, quiet=false.

    Keys for a server: model=NAME, concurrency=8, seed_bits=64|31.

    """
    from rorqual.cli.generating import generate_file

    outcome, out = generate_file(file, settings)
    print("\n".join(outcome.lines(out)))
    if outcome.errors:
        raise typer.Exit(1)


def _default_text(param: Param) -> str:
    """Return the value that the help shows for a sampling parameter: its format if it is a list, map or grammar, else its default."""
    match param.in_file:
        case TextList():
            return "TEXT|[...]"
        case TokenList():
            return "[...]"
        case TokenBiases():
            return "{ID: BIAS}"
        case GrammarType():
            return "{kind: json_schema|regex|choice|json, source: ...}"
    default = param.file_default
    return "" if default is None else str(default).lower() if isinstance(default, bool) else f"{default:g}"


KEYS = ", ".join(f"{name}={_default_text(param)}" for name, param in PARAMS.items())
generate.__doc__ = f"{generate.__doc__}Sampling keys: thinking=auto|on|off, {KEYS}.\n    "
