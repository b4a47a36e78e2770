"""Prompt files, in any file format that `core.rows` reads. An invalid row is reported, and the following rows are still read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rorqual.core.errors import DataError
from rorqual.core.rows import BadRow, name_file_in_read_errors, scan_rows

TABLES = (".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class RefusedRow:
    """A row that cannot be answered.

    `line` is the number of the row's line or table row, counted from 1, and `key` is the row's invalid key. `what` describes
    the problem, and `remedy` describes how to fix the problem. `carried` holds the extra fields of the row, which the output
    repeats.
    """

    line: int
    key: str
    what: str
    remedy: str
    carried: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptFile:
    """A prompt file. `rows` is the file's number of rows, `last` the line number of the last row, and `sha256` the hash of
    the file."""

    path: Path
    rows: int
    last: int
    sha256: str

    @classmethod
    def open(cls, path: Path) -> PromptFile:
        """Open a prompt file and count its rows. Raises DataError if the file cannot be read."""
        with name_file_in_read_errors(path):
            if path.exists() and not path.is_file():
                what = "the prompts are read twice, so they must be in a regular file"
                raise DataError(what, where=str(path), remedy="Save the prompts to a file.")
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        rows = last = 0
        for line, _ in read_prompts(path):
            rows, last = rows + 1, line
        return cls(path, rows, last, digest)

    def columns(self) -> list[str]:
        """Return the names of all fields of the file's rows, in order of first appearance."""
        return [*dict.fromkeys(name for _, row in read_prompts(self.path) if isinstance(row, dict) for name in row)]


def read_prompts(path: Path) -> Iterator[tuple[int, dict[str, Any] | RefusedRow]]:
    """Yield (number, row) for each row of a prompt file. In a table file (`TABLES`), the number counts rows, because a row
    may span several lines. In all other files, the number is the row's line number."""
    is_table = path.suffix.lower() in TABLES
    for number, row in enumerate(scan_rows(path), start=1):
        line = number if is_table else row.line
        yield line, RefusedRow(line, "", row.what, row.remedy) if isinstance(row, BadRow) else row.values
