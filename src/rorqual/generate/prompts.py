"""Prompt files in JSONL, Parquet or CSV. An invalid row is reported, and the following rows are still read."""

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
"""Maximum number of bytes in a line. A longer line is rejected. It is read in pieces, so that it cannot fill the
memory."""
HEAD, CHUNK = 4096, 2**16
LINES, TABLES = (".jsonl", ".ndjson", ".json"), (".parquet", ".csv")
TEXTS = frozenset({"prompt", *(name for name, param in PARAMS.items() if isinstance(param.type, TextList))})
"""Columns of a CSV file that stay text even if their values look like numbers."""


@dataclass(frozen=True)
class Refused:
    """A row that cannot be answered.

    `line` is the number of the line or table row, counted from 1, and `key` is the invalid key. `what` describes the problem,
    and `remedy` describes how to fix it. `carried` holds the extra fields of the row, which the output repeats.
    """

    line: int
    key: str
    what: str
    remedy: str
    carried: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompts:
    """A prompt file. `rows` is the number of rows, `last` the line number of the last row, and `sha256` the hash of the file."""

    path: Path
    rows: int
    last: int
    sha256: str

    @classmethod
    def open(cls, path: Path) -> Prompts:
        """Open a prompt file and count its rows.

        Raises DataError if the file is missing or empty, is not text, or has an unknown type.
        """
        kind = path.suffix.lower()
        if kind not in (*LINES, *TABLES):
            raise DataError(
                f"unknown file type '{kind}'", where=str(path), remedy="Give a .jsonl, .parquet or .csv file."
            )
        try:
            if path.exists() and not path.is_file():
                raise DataError(
                    "the prompts are read twice, so they must be in a regular file",
                    where=str(path),
                    remedy="Save the prompts to a file.",
                )
            digest, head, rows, last = _scan(path)
        except FileNotFoundError:
            raise DataError("no such file", where=str(path), remedy="Check the path.") from None
        except OSError as error:
            raise DataError(f"cannot read: {error.strerror}", where=str(path), remedy="Check the path.") from None
        if kind != ".parquet" and _binary(head):
            raise DataError(
                "not a text file: its first bytes look binary or compressed",
                where=str(path),
                remedy="Give a JSONL file in UTF-8 with one object per line.",
            )
        if kind in TABLES and rows:
            rows = last = sum(1 for _ in _read(path))
        if not rows:
            raise DataError("the file is empty", where=str(path), remedy="Give a file with one prompt per line.")
        return cls(path, rows, last, digest)

    def columns(self) -> list[str]:
        """Return the names of all fields. Of a table only the header is read, and of JSON lines every row."""
        kind = self.path.suffix.lower()
        if kind == ".csv":
            with open(self.path, encoding="utf-8-sig", newline="") as file:
                return next(csv.reader(file, strict=True), [])
        if kind == ".parquet":
            import pyarrow.parquet

            return list(pyarrow.parquet.read_schema(self.path).names)
        return [*dict.fromkeys(name for _, row in self.read() if isinstance(row, dict) for name in row)]

    def read(self) -> Iterator[tuple[int, dict[str, Any] | Refused]]:
        """Yield (line number, row) for each row. Blank lines are skipped, but counted in the line numbers."""
        return _read(self.path)


def _scan(path: Path) -> tuple[str, bytes, int, int]:
    """Return the SHA-256, the first bytes, the number of non-blank lines, and the line number of the last non-blank line."""
    digest, head, rows, line, last, blank = hashlib.sha256(), b"", 0, 1, 0, True
    bom = BOM  # only the first line may begin with a byte-order mark
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            head = head or chunk[:HEAD]
            digest.update(chunk)
            for place, piece in enumerate(chunk.split(b"\n")):
                if place:
                    line, blank = line + 1, True
                if blank and piece.removeprefix(bom).strip():
                    rows, last, blank = rows + 1, line, False
                bom = b""
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
            too_long, piece = False, raw
            while len(piece) == LONGEST_LINE and not piece.endswith(b"\n"):
                piece = file.readline(LONGEST_LINE)
                too_long = too_long or bool(piece)
            if number == 1:
                raw = raw.removeprefix(BOM)
            if too_long:
                yield number, Refused(number, "", f"the line is longer than {LONGEST_LINE} bytes", "Shorten the line.")
            elif raw.strip():
                yield number, _object(raw, number)


def _object(raw: bytes, line: int) -> dict[str, Any] | Refused:
    try:
        raw.decode("utf-8")
        # In contrast to json.loads, this parser limits the nesting depth and rejects NaN and lone surrogates.
        row = pydantic_core.from_json(raw, allow_inf_nan=False)
    except UnicodeDecodeError as error:
        what = f"not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start}"
        return Refused(line, "", what, "Convert the file to UTF-8.")
    except ValueError as error:
        return Refused(line, "", f"not JSON: {error}", "Write one JSON object per line.")
    if not isinstance(row, dict):
        return Refused(
            line, "", f"the line is a JSON {type(row).__name__}, not an object", "Write one JSON object per line."
        )
    return row


# ---- tables


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any] | Refused]]:
    import pyarrow  # imported here because the import takes 0.3 s and JSONL files do not need it
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield number, _without_null(row)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"not valid Parquet: {error}", where=str(path), remedy="Export the file again.") from None


def _without_null(value: Any) -> Any:
    """Return `value` without null fields. Parquet adds a null field to each row that has no value in a column."""
    if isinstance(value, dict):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    return [_without_null(item) for item in value] if isinstance(value, list) else value


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
            what = f"the row has {len(cells)} cells, but the header has {len(names)} columns"
            yield number, Refused(number, "", what, "Put cells that contain commas in quotes.")
        else:
            yield number, {name: text for name, text in zip(names, cells) if text}


def typed_cells(row: dict[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    """Convert cells of a CSV row from strings to numbers, lists or booleans. Only columns in `keys` are converted, and
    columns in `TEXTS` stay strings."""
    return {
        name: scalar(value) if name in keys - TEXTS and isinstance(value, str) else value for name, value in row.items()
    }
