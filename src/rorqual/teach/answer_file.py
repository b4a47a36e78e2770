"""Answer the rows of a file with what `rorqual teach` chose. An interrupted command resumes."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rorqual.core.conversations import read_messages
from rorqual.core.errors import ConfigError, DataError
from rorqual.data.fingerprint import fingerprint
from rorqual.data.source.cells import joined_prompt, named_columns
from rorqual.generate.batch import output_record
from rorqual.generate.output import TABLES, CsvOutput, PartialOutput, answer_rows
from rorqual.generate.prompts import PromptFile, RefusedRow, read_prompts
from rorqual.generate.schema import is_json_writable
from rorqual.teach.answerer import Answerer, AnswererConfig, load_answerer
from rorqual.teach.columns import MESSAGES
from rorqual.teach.contract import check_length, prompt_of_turns, warning
from rorqual.teach.paths import TeachPaths

ADDED = ("line", "answer", "probability", "sure", "error")
"""The columns of the output that a row must not have."""
ROWS_AT_ONCE = 64
"""Number of rows that are answered and saved together."""


@dataclass(frozen=True)
class _Row:
    """A row of the file, and its prompt."""

    line: int
    values: dict[str, Any]
    prompt: str


def answer_file(
    file: Path,
    out: Path,
    folder: Path,
    *,
    columns: str,
    threads: int,
    strict: bool,
    quiet: bool,
    versions: Mapping[str, Any],
) -> tuple[int, list[str]]:
    """Answer all rows of `file` that have no answer in `out` yet. The output is a table if `out` ends in .csv or .tsv,
    else JSON lines.

    `columns` names the columns of the prompt, separated by commas; "" stands for the columns of the training examples. With
    `strict`, DataError is raised for the first row without a prompt, before anything is answered. `versions` has the versions
    of the software that answers depend on. Return the number of rows with an error, and the lines of a summary.
    """
    prompts = PromptFile.open(file)
    names = prompts.columns()
    if taken := [name for name in ADDED if name in names]:
        raise ConfigError(
            f"the file has a column '{taken[0]}', which the output adds", where=str(file), remedy="Rename the column."
        )
    answerer = load_answerer(folder, threads=threads)
    known = named_columns(
        columns or ",".join(answerer.config.columns or [MESSAGES if MESSAGES in names else "prompt"]), names, "prompt"
    )
    read_row = partial(_read_row, columns=known, config=answerer.config)
    rows = itertools.starmap(read_row, read_prompts(file))
    if strict and (fault := next((row for row in rows if isinstance(row, RefusedRow)), None)):
        raise DataError(fault.what, where=f"{file}:{fault.line}", remedy=fault.remedy)
    made = {
        "file": prompts.sha256,
        "run": answerer_fingerprint(folder, answerer.config),
        "prompt": ", ".join(known),
        **versions,
    }
    output_of = partial(CsvOutput, like=file) if out.suffix.lower() in TABLES else PartialOutput
    with output_of(out, made, rows=prompts.rows, last=prompts.last) as output:
        faults = answer_rows(
            output, prompts, lambda rows: _records(itertools.starmap(read_row, rows), answerer), quiet=quiet
        )
        errors, sure = output.errors, f", {output.sure:,} sure" if answerer.config.may_abstain else ""
    refusal = warning(answerer.config)
    return errors, [
        f"{prompts.rows:,} lines: {prompts.rows - errors:,} answered{sure}, {errors:,} refused",
        *faults,
        *[f"  {refusal}"] * bool(refusal),
        f"  {out}",
    ]


def _read_row(
    line: int, row: dict[str, Any] | RefusedRow, columns: Sequence[str], config: AnswererConfig
) -> _Row | RefusedRow:
    if isinstance(row, RefusedRow):
        return row
    writable = {name: value for name, value in row.items() if is_json_writable(value)}
    if lost := [name for name in row if name not in writable]:
        return RefusedRow(line, lost[0], "the value cannot be written as JSON", "Write it as a text.", writable)
    try:
        talk = columns == (MESSAGES,)
        prompt = prompt_of_turns(read_messages(row.get(MESSAGES)), config) if talk else joined_prompt(row, columns)
        return _Row(line, row, check_length(prompt, config))
    except DataError as error:
        return RefusedRow(
            line, columns[0], error.what, error.remedy or "Fill the columns of the prompt, or delete the row.", row
        )


def _records(rows: Iterator[_Row | RefusedRow], answerer: Answerer) -> Iterator[dict[int, dict[str, Any]]]:
    """Yield the output records of the rows, some at a time."""
    while some := [*islice(rows, ROWS_AT_ONCE)]:
        asked = [row for row in some if isinstance(row, _Row)]
        lines = {row.line: output_record(row, ()) for row in some if isinstance(row, RefusedRow)}
        for row, answer in zip(asked, answerer.answer([row.prompt for row in asked]), strict=True):
            record = {"line": row.line, **row.values, "answer": answer.text, "probability": answer.probability}
            lines[row.line] = record | ({"sure": answer.sure} if answerer.config.may_abstain else {})
        yield lines


def answerer_fingerprint(folder: Path, config: AnswererConfig) -> str:
    """Return a hash of the chosen rungs, the calibration and the promise."""
    paths, digest = TeachPaths(folder), hashlib.sha256()
    for file in (paths.answerer, *map(paths.rung_file, config.rungs)):
        digest.update(
            file.read_bytes() if file.is_file() else fingerprint(paths.model, paths.model.checkpoint()).encode()
        )
    return digest.hexdigest()
