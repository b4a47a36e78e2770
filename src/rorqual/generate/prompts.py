"""Read a file of prompts row by row: JSON lines, Parquet or CSV. An unreadable row is reported, and the others are
still read."""

from __future__ import annotations

import csv
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pydantic_core

from rorqual.core.config import scalar
from rorqual.core.errors import DataError
from rorqual.core.sampling import PARAMS, TextList

BOM = b"\xef\xbb\xbf"
LONGEST_LINE = 64 * 2**20
"""Maximum number of bytes in a line. A longer line is rejected without being kept in memory."""
HEAD, CHUNK = 4096, 2**16
LINES, TABLES = (".jsonl", ".ndjson", ".json"), (".parquet", ".csv")
TEXTS = frozenset({"prompt", *(name for name, param in PARAMS.items() if isinstance(param.type, TextList))})
"""Columns of a CSV file that are text even if they look like numbers."""


@dataclass(frozen=True)
class Refused:
    """A row that cannot be answered: its line or row from 1, the wrong key, the problem, the remedy and the extra
    fields."""

    line: int
    key: str
    what: str
    remedy: str
    carried: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompts:
    """A file of prompts with its number of rows, the line number of the last one, and the SHA-256 of its bytes when
    opened."""

    path: Path
    rows: int
    last: int
    sha256: str

    @classmethod
    def open(cls, path: Path) -> Prompts:
        """Read a file once to count its rows. Raises DataError if it is missing, empty, binary or of an unknown type."""
        kind = path.suffix.lower()
        if kind not in (*LINES, *TABLES):
            raise DataError(
                f"unknown file type '{kind}'", where=str(path), remedy="Give a .jsonl, .parquet or .csv file."
            )
        try:
            if path.exists() and not path.is_file():
                raise DataError("not a regular file", where=str(path), remedy="Give a file that can be read twice.")
            digest, head, rows, last = _scan(path)
        except FileNotFoundError:
            raise DataError("no such file", where=str(path), remedy="Check the path.") from None
        except OSError as error:
            raise DataError(f"cannot read: {error.strerror}", where=str(path), remedy="Check the path.") from None
        if kind != ".parquet" and _binary(head):
            raise DataError(
                "not a text file: it looks binary or compressed",
                where=str(path),
                remedy="Give JSON lines in UTF-8, one object per line.",
            )
        if kind in TABLES and rows:
            rows = last = sum(1 for _ in _read(path))
        if not rows:
            raise DataError("the file is empty", where=str(path), remedy="Give a file with one prompt per line.")
        return cls(path, rows, last, digest)

    def read(self) -> Iterator[tuple[int, dict[str, Any] | Refused]]:
        """Yield (line, row) for each row. Blank lines are skipped but counted as lines."""
        return _read(self.path)


def _scan(path: Path) -> tuple[str, bytes, int, int]:
    """Return the SHA-256, the first bytes, the number of non-blank lines, and the line number of the last of them."""
    digest, head, rows, line, last, blank = hashlib.sha256(), b"", 0, 1, 0, True
    start = BOM  # may precede the first line
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            head = head or chunk[:HEAD]
            digest.update(chunk)
            first, *rest = chunk.split(b"\n")
            for place, piece in enumerate((first, *rest)):
                if place:
                    line, blank = line + 1, True
                if blank and piece.removeprefix(start).strip():
                    rows, last, blank = rows + 1, line, False
                start = b""
    return digest.hexdigest(), head, rows, last


def _binary(head: bytes) -> bool:
    if head.startswith((b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"PAR1", b"\xff\xfe", b"\xfe\xff")):
        return True
    control = sum(byte < 32 and byte not in b"\t\n\r" for byte in head)
    return control > len(head) / 20


def _read(path: Path) -> Iterator[tuple[int, dict[str, Any] | Refused]]:
    kind = path.suffix.lower()
    return _parquet(path) if kind == ".parquet" else _csv(path) if kind == ".csv" else _json_lines(path)


# ---- JSON lines


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | Refused]]:
    with open(path, "rb") as file:
        for number in itertools.count(1):
            raw = file.readline(LONGEST_LINE)
            if not raw:
                return
            long, piece = False, raw
            while len(piece) == LONGEST_LINE and not piece.endswith(b"\n"):
                piece = file.readline(LONGEST_LINE)
                long = long or bool(piece)
            if number == 1:
                raw = raw.removeprefix(BOM)
            if long:
                yield number, Refused(number, "", f"the line is longer than {LONGEST_LINE} bytes", "Shorten it.")
            elif raw.strip():
                yield number, _object(raw, number)


def _object(raw: bytes, line: int) -> dict[str, Any] | Refused:
    try:
        raw.decode("utf-8")
        # This parser limits the depth and rejects NaN and lone surrogates.
        row = pydantic_core.from_json(raw, allow_inf_nan=False)
    except UnicodeDecodeError as error:
        what = f"not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start}"
        return Refused(line, "", what, "Convert the file to UTF-8.")
    except ValueError as error:
        return Refused(line, "", f"not JSON: {error}", "Write one JSON object per line.")
    if not isinstance(row, dict):
        return Refused(line, "", f"a JSON {type(row).__name__}, not an object", "Write one JSON object per line.")
    return row


# ---- tables


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any] | Refused]]:
    import pyarrow  # not at the top: it takes a third of a second, which a JSONL file does not need
    import pyarrow.parquet

    number = 0
    try:
        for piece in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256):
            for row in piece.to_pylist():
                number += 1
                yield number, _given(row)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"not valid Parquet: {error}", where=str(path), remedy="Export the file again.") from None


def _given(value: Any) -> Any:
    """Remove null fields, which Parquet adds to rows without a value in a column."""
    if isinstance(value, dict):
        return {key: _given(item) for key, item in value.items() if item is not None}
    return [_given(item) for item in value] if isinstance(value, list) else value


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any] | Refused]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            yield from _csv_rows(file)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"not CSV in UTF-8: {error}", where=str(path), remedy="Export the file again.") from None


def _csv_rows(file: TextIO) -> Iterator[tuple[int, dict[str, Any] | Refused]]:
    rows = csv.reader(file, strict=True)
    names = next(rows, [])
    for number, cells in enumerate((cells for cells in rows if cells), start=1):
        if len(cells) > len(names):
            what = f"the row has {len(cells)} cells, but the header {len(names)} columns"
            yield number, Refused(number, "", what, "Put cells that contain commas in quotes.")
        else:
            yield number, {name: text for name, text in zip(names, cells) if text}


def typed_cells(row: dict[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    """Parse the cells of `keys` in a CSV row as numbers, lists or booleans. Text columns (`TEXTS`) stay strings."""
    return {
        name: scalar(value) if name in keys - TEXTS and isinstance(value, str) else value for name, value in row.items()
    }
