"""The command `rorqual check FILE`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from rorqual.cli.settings import Settings, parse_settings
from rorqual.core.config import Config
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir, write_atomic, write_json


class CheckSettings(Config):
    """Settings of `rorqual check`."""

    prompt: str = Field(
        "",
        description="columns of the prompt, separated by commas; default: known names such as question, text or messages",
    )
    answer: str = Field("", description="column of the answer")
    reasoning: str = Field("", description="column of the worked solution")
    against: str = Field("", description="test file whose prompts must not occur in FILE")
    base: str = Field(
        "",
        description="run whose tokenizer counts lengths, and whose size gives the forecast; default: bytes, and SmolLM2-135M",
    )
    page: str = Field("", description="HTML file")
    out: str = Field("", description="JSON file of all faults, and of the rows that suspects= and unlabelled= list")
    suspects: bool = Field(False, description="list the rows that are probably mislabelled; for labels")
    unlabelled: str = Field(
        "", description="file of rows without labels: list which to label next; includes suspects=true"
    )
    next: str = Field("", description="CSV file of the first 100 rows to label next")
    encoder: str = Field(
        "",
        description="folder or .zip of a BERT encoder for suspects= and unlabelled=, or none; default: MiniLM, downloaded once (83 MB)",
    )


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL, JSON, CSV, TSV or Parquet file of examples.")],
    settings: Settings = None,
) -> None:
    """Check a file of examples before training.

    All faults of the file are listed with their lines: rows that cannot be read, empty prompts and answers, duplicates,
    near-duplicates, and contradictions. Further faults are answers that the prompt states, and rows that also occur in a test
    file. With suspects=true, the command lists rows that are probably mislabelled, and with unlabelled=, rows to label next. The
    command also shows the kind of answers, the lengths of prompts and answers, and how the rows would be split. The
    command exits with status 1 if the file has faults other than duplicates and near-duplicates.
    """
    chosen = parse_settings(CheckSettings, settings)

    from rorqual.generate.output import check_writable_path
    from rorqual.teach.check import check_file
    from rorqual.teach.check_page import check_page, check_text, to_json

    if chosen.next and not chosen.unlabelled:
        raise ConfigError("next= needs unlabelled=", where="key 'next'", remedy="Give unlabelled=FILE.")
    for place in filter(None, (chosen.page, chosen.out, chosen.next)):
        check_writable_path(Path(place))
    count, unit = _length_counter(chosen.base)
    result = check_file(
        file,
        count,
        prompt=chosen.prompt,
        answer=chosen.answer,
        reasoning=chosen.reasoning,
        against=Path(chosen.against) if chosen.against else None,
    )
    print(check_text(result, unit))
    if result.lengths:
        from rorqual.model.load.run_directory import read_model_config
        from rorqual.model.presets import preset
        from rorqual.teach.check import BYTES_PER_TOKEN, DEFAULT_MODEL, training_cost_sentence

        if chosen.base:
            print(f"  {training_cost_sentence(read_model_config(RunDir(Path(chosen.base))), result.lengths)}")
        else:
            tokens = [-(-length // BYTES_PER_TOKEN) for length in result.lengths]
            print(
                f"  with SmolLM2-135M, at {BYTES_PER_TOKEN} bytes per token: {training_cost_sentence(preset(DEFAULT_MODEL), tokens)}"
            )
    advice = None
    if chosen.suspects or chosen.unlabelled:
        from rorqual.teach.encoder import find_encoder
        from rorqual.teach.labelling import advise

        unlabelled, write = (Path(path) if path else None for path in (chosen.unlabelled, chosen.next))
        advice = advise(result, find_encoder(chosen.encoder, print), unlabelled=unlabelled, write=write)
        print(f"\n{advice.text}")
    if chosen.out:
        write_json(Path(chosen.out), {**to_json(result), **(advice.json if advice else {})})
        print(f"  {chosen.out}: all faults")
    if chosen.page:
        write_atomic(Path(chosen.page), check_page(result, unit, advice.tables if advice else ()).encode())
        print(f"  {chosen.page}: the same as a page")
    if not result.passes:
        raise typer.Exit(1)


def _length_counter(base: str) -> tuple[Callable[[str], int], str]:
    """Return a function that measures the length of a text, and the unit of the length: tokens of the run `base`, or
    bytes if `base` is empty."""
    if not base:
        return (lambda text: len(text.encode())), "bytes"
    from rorqual.data.tokenizer import Tokenizer

    run = RunDir(Path(base))
    run.checkpoint()
    return Tokenizer.load(run.tokenizer_file).count_tokens, "tokens"
