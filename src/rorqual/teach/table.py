"""Read a table of examples: JSONL, JSON, CSV or Parquet. All faults are collected with their lines, instead of stopping at the first."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rorqual.core.errors import DataError
from rorqual.data.source.files import decode, parquet_rows, read_bytes

NOT_CSV = "not CSV"
"""The kind of fault after which it is not known where records begin."""


@dataclass(frozen=True)
class RowFault:
    """A problem of one row. `line` is the line in the file (the row number for Parquet and JSON lists). `other` is the line that the row
    duplicates or contradicts, or 0."""

    line: int
    kind: str
    text: str
    other: int = 0


@dataclass(frozen=True)
class TableRow:
    """A row of a table, with its line in the file."""

    line: int
    values: Mapping[str, Any]


@dataclass
class ExampleTable:
    """The rows of a file, and the faults of the rows that could not be read."""

    path: Path
    rows: list[TableRow] = field(default_factory=list)
    faults: list[RowFault] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """The names of all columns, in order of first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row.values))


def read_table(path: Path) -> ExampleTable:
    """Read a file by its extension: .jsonl, .ndjson, .json, .csv, .tsv or .parquet.

    A .json file is a list of objects, or an object with one list of objects, or JSONL. Raises DataError if the file as a whole cannot be
    read, or if it has no rows.
    """
    readers: dict[str, Callable[[ExampleTable], None]] = {
        ".jsonl": _read_lines,
        ".ndjson": _read_lines,
        ".json": _read_json,
        ".csv": lambda table: _read_csv(table, None),
        ".tsv": lambda table: _read_csv(table, "\t"),
        ".parquet": _read_parquet,
    }
    kind = path.suffix.lower()
    if kind not in readers:
        raise DataError(
            f"unknown file type {kind!r}" if kind else "the file has no extension",
            where=str(path),
            remedy=f"Give a file that ends in {', '.join(readers)}.",
        )
    table = ExampleTable(path)
    readers[kind](table)
    if not table.rows and not table.faults:
        raise DataError("the file has no rows", where=str(path), remedy="Give a file with examples.")
    return table


def _read_lines(table: ExampleTable) -> None:
    for line, data in enumerate(read_bytes(table.path).split(b"\n"), start=1):
        if data.strip():
            _add_json(table, line, data)


def _add_json(table: ExampleTable, line: int, data: bytes) -> None:
    try:
        row = json.loads(decode(data, str(table.path)))
    except DataError as error:
        table.faults.append(RowFault(line, "not UTF-8", error.what))
        return
    except (ValueError, RecursionError) as error:
        table.faults.append(RowFault(line, "not JSON", f"not JSON: {error}"))
        return
    _add_object(table, line, row)


def _add_object(table: ExampleTable, line: int, row: Any) -> None:
    if isinstance(row, dict):
        table.rows.append(TableRow(line, row))
    else:
        table.faults.append(RowFault(line, "not an object", f"a JSON {type(row).__name__}, not an object"))


def _read_json(table: ExampleTable) -> None:
    data = read_bytes(table.path)
    try:
        whole = json.loads(decode(data, str(table.path)))
    except (ValueError, RecursionError) as error:
        if data.lstrip().startswith(b"{") and len(data.strip().split(b"\n")) > 1:  # JSONL with the extension .json
            _read_lines(table)
            return
        raise DataError(f"not JSON: {error}", where=str(table.path), remedy="Give a list of objects.") from None
    if isinstance(whole, dict):
        lists = [value for value in whole.values() if isinstance(value, list)]
        whole = lists[0] if len(lists) == 1 and isinstance(lists[0][0] if lists[0] else None, dict) else [whole]
    if not isinstance(whole, list):
        raise DataError(
            f"a JSON {type(whole).__name__}, not a list of objects",
            where=str(table.path),
            remedy="Give a list of objects.",
        )
    for number, row in enumerate(whole, start=1):
        _add_object(table, number, row)


def _read_csv(table: ExampleTable, delimiter: str | None) -> None:
    text = decode(read_bytes(table.path), str(table.path))
    if "\0" in text:
        raise DataError(
            "the file has NUL characters, so it is not CSV", where=str(table.path), remedy="Export it again as UTF-8."
        )
    first = text.partition("\n")[0]
    separator = delimiter or max(",;\t", key=first.count)
    names: list[str] = []
    for line, cells in _csv_rows(text, separator, table):
        if not names:
            names = [name.strip() for name in cells]
            if len(set(names)) < len(names):
                raise DataError(
                    f"the header repeats a column: {', '.join(names)}",
                    where=f"{table.path}:1",
                    remedy="Give each column its own name.",
                )
        elif len(cells) != len(names):
            problem = f"{len(cells)} cells, but the header has {len(names)} columns"
            table.faults.append(RowFault(line, "wrong number of cells", problem))
        else:
            table.rows.append(TableRow(line, dict(zip(names, cells, strict=True))))


def _csv_rows(text: str, separator: str, table: ExampleTable) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, cells) of each record that is not blank. A quoted cell may span several lines.

    A record that is not CSV is a fault, and reading goes on at the line after its first.
    """
    lines = list(io.StringIO(text, newline=""))
    start = 0
    while start < len(lines):
        first = start
        reader = csv.reader((lines[number] for number in range(first, len(lines))), delimiter=separator, strict=True)
        try:
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield start + 1, cells
                start = first + reader.line_num
            return
        except csv.Error as error:
            if not any(line.strip() for line in lines[:start]):
                raise DataError(
                    f"the header is not CSV: {error}",
                    where=f"{table.path}:{start + 1}",
                    remedy="Mend its quotation marks.",
                ) from None
            problem = f"not CSV: {error}. A quotation mark may be missing, or not doubled in a quoted cell"
            table.faults.append(RowFault(start + 1, NOT_CSV, problem))
            start += 1


def _read_parquet(table: ExampleTable) -> None:
    for number, (_, row) in enumerate(parquet_rows(table.path, ((),)), start=1):
        table.rows.append(TableRow(number, row))
