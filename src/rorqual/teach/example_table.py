"""Read a file of examples. Faulty rows do not stop the reading: the faults of all rows are collected, with line numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rorqual.core.errors import DataError
from rorqual.core.rows import BadRow, DataRow, scan_rows
from rorqual.teach.columns import Columns, find_columns
from rorqual.teach.examples import Example, common_system_message, example_of_row


@dataclass(frozen=True)
class RowFault:
    """A problem of one row. `line` is the line of the row in the file (the row number for Parquet and JSON lists). `other` is
    the line that the row duplicates or contradicts, or 0."""

    line: int
    kind: str
    text: str
    other: int = 0


@dataclass(frozen=True)
class ExampleTable:
    """The content of a file of examples: the chosen columns, the number of rows, the usable examples, and one fault for each
    unusable row."""

    columns: Columns
    rows: int
    examples: Sequence[Example]
    faults: Sequence[RowFault]


def read_table(
    path: Path, *, prompt: str = "", answer: str = "", reasoning: str = "", system: str | None = None
) -> ExampleTable:
    """Read a file of rows. `prompt`, `answer` and `reasoning` name columns, as in `find_columns`.

    If a conversation begins with the system message `system`, this message is left out. If `system` is None, the system message
    with which all conversations of the file begin is left out. Raises DataError if the file as a whole cannot be read, and
    ConfigError if the columns are not found.
    """
    rows, examples, faults = list[DataRow](), list[Example](), list[RowFault]()
    for row in scan_rows(path):
        if isinstance(row, BadRow):
            faults.append(RowFault(row.line, row.kind, row.what))
        else:
            rows.append(row)
    total = len(rows) + len(faults)
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    columns = find_columns(names, prompt=prompt, answer=answer, reasoning=reasoning) if rows else Columns()
    if columns.messages:
        columns = replace(columns, system=common_system_message(rows, columns.messages) if system is None else system)
    for row in rows:
        try:
            examples.append(example_of_row(row, columns))
        except DataError as error:
            kind = "empty" if "empty" in error.what else "missing or not text"
            faults.append(RowFault(row.line, kind, error.what))
    return ExampleTable(columns, total, examples, faults)
