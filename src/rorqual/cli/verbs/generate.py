"""`rorqual generate FILE run=RUN out=OUT`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.settings import Settings
from rorqual.core.sampling import PARAMS, GrammarType, Param, TextList, TokenBiases, TokenList


def generate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Prompts: .jsonl, .parquet or .csv.")],
    settings: Settings = None,
) -> None:
    """Answer a file of prompts. Stopped at any moment, the same command goes on and gives the same file.

    A row has prompt (what a user says), messages or prompt_ids, and may have an id, sampling keys of its own, and other fields, which
    are carried over. A bad row becomes a line with its error; the others go on, and the command ends with 1.
    Keys: run=RUN|http://..., out=FILE.jsonl, raw=false (prompts are texts to continue), token_ids=false, logprobs=false, strict=false (stop
    at a bad row before anything runs), slots=64, max_len=, threads=, device=, dtype=, backend=, quiet=false; for a server
    model=NAME, concurrency=8, seed_bits=64|31.
    """
    from rorqual.cli.generating import generate_file

    outcome, out = generate_file(file, settings)
    print("\n".join(outcome.lines(out)))
    if outcome.errors:
        raise typer.Exit(1)


def _shown(param: Param) -> str:
    """How a sampling key is written on the command line: with its default, or its form."""
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


KEYS = ", ".join(f"{name}={_shown(param)}" for name, param in PARAMS.items())
generate.__doc__ = f"{generate.__doc__}Sampling keys: thinking=auto|on|off, {KEYS}.\n    "
