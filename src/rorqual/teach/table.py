"""A table of examples and the faults of its rows, which are collected with their lines instead of stopping at the first."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rorqual.core.rows import BadRow, DataRow, scan_rows


@dataclass(frozen=True)
class RowFault:
    """A problem of one row. `line` is the line in the file (the row number for Parquet and JSON lists). `other` is the line that the row
    duplicates or contradicts, or 0."""

    line: int
    kind: str
    text: str
    other: int = 0


@dataclass
class ExampleTable:
    """The rows of a file, and the faults of the rows that could not be read."""

    path: Path
    rows: list[DataRow] = field(default_factory=list)
    faults: list[RowFault] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """The names of all columns, in order of first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row.values))


def read_table(path: Path) -> ExampleTable:
    """Read a file of rows. Raises DataError if the file as a whole cannot be read."""
    table = ExampleTable(path)
    for row in scan_rows(path):
        if isinstance(row, BadRow):
            table.faults.append(RowFault(row.line, row.kind, row.what))
        else:
            table.rows.append(row)
    return table
