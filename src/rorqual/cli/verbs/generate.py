"""`rorqual generate FILE run=RUN out=OUT`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.settings import Settings


def generate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Prompts: .jsonl, .parquet or .csv.")],
    settings: Settings = None,
) -> None:
    """Answer a file of prompts. Stopped at any moment, the same command goes on and gives the same file.

    A row has prompt (what a user says), messages or prompt_ids, and may have an id, sampling keys of its own, and other fields, which
    are carried over. A bad row becomes a line with its error; the others go on, and the command ends with 1.
    Keys: run=RUN|http://..., out=FILE.jsonl, raw=false (prompts are texts to continue), token_ids=false, logprobs=false, strict=false (stop
    at a bad row before anything runs), slots=64, max_len=, threads=, device=, dtype=, quiet=false; for a server model=NAME, concurrency=8,
    seed_bits=64|31.
    Sampling keys: max_tokens=1024, temperature=0, top_p=1, top_k=0, min_p=0, seed=0, n=1, stop=TEXT|[...], stop_token_ids=[...],
    thinking=auto|on|off, repetition_penalty=1, presence_penalty=0, frequency_penalty=0, logit_bias={ID: BIAS}, top_logprobs=0,
    ignore_eos=false, min_tokens=0, min_p_first=false, prompt_logprobs=, grammar={kind: json_schema|regex|choice|json, source: ...}.
    """
    from rorqual.cli.generating import generate_file

    outcome, out = generate_file(file, settings)
    print("\n".join(outcome.lines(out)))
    if outcome.errors:
        raise typer.Exit(1)
