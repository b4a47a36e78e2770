"""Read the rows of a file: JSON lines, JSON, CSV, TSV or Parquet. Every error names the file, and also the line or row if the
line or row is known."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pydantic_core

from rorqual.core.errors import DataError

BOM = b"\xef\xbb\xbf"
BINARY = (b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"PAR1")
"""First bytes of gzip, zip, Zstandard and Parquet files."""
UTF16 = (b"\xff\xfe", b"\xfe\xff")
"""First bytes of UTF-16 text, which Excel writes as "Unicode Text"."""
HEAD = 4096
CONTROL_AT_MOST = 0.05
"""If more than the share `CONTROL_AT_MOST` of a file's first `HEAD` bytes are control characters, the file counts as
binary."""
ROWS_AT_ONCE = 256
TO_UTF8 = "Convert the file to UTF-8, such as: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW."
ONE_OBJECT = "Write one JSON object on each line."


@dataclass(frozen=True)
class DataRow:
    """A row of a data file. `line` is the number of the row's first line, or the row's number in Parquet files and JSON
    lists. `where` names the row in error messages."""

    line: int
    where: str
    values: dict[str, Any]

    def get(self, name: str, *types: type) -> Any:
        """Return the row's value of column `name`. The value must have one of the `types`; without `types`, the value must be
        a string.

        Raises DataError, with file, line and column, for a missing column or a value of another type.
        """
        if name not in self.values:
            raise DataError(
                f"no column '{name}'", where=self.where, remedy=f"The columns are: {', '.join(map(str, self.values))}."
            )
        value = self.values[name]
        if not isinstance(value, types or (str,)):
            wanted = " or ".join(t.__name__ for t in types or (str,))
            raise DataError(f"column '{name}' is not {wanted}: {value!r:.60}", where=self.where, remedy="Fix the row.")
        return value

    def text_values(self, name: str) -> list[str]:
        """Return the row's value of column `name`. Raises DataError if the value is not a list of strings."""
        value: list[str] = self.get(name, list)
        for item in value:
            if not isinstance(item, str):
                raise DataError(
                    f"column '{name}' holds an item that is not a string: {item!r:.60}",
                    where=self.where,
                    remedy="Fix the row.",
                )
        return value


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read. `kind` is a short name for the type of fault."""

    line: int
    where: str
    kind: str
    what: str
    remedy: str


def read_rows(path: Path) -> Iterator[DataRow]:
    """Yield the rows of a file. Raises DataError for the first row that cannot be read, and for a file that `scan_rows` rejects."""
    for row in scan_rows(path):
        if isinstance(row, BadRow):
            raise DataError(row.what, where=row.where, remedy=row.remedy)
        yield row


def scan_rows(path: Path) -> Iterator[DataRow | BadRow]:
    """Yield the rows of a file, and a `BadRow` for each row that cannot be read.

    A .json file is a list of objects, an object with one list of objects, or JSON lines. The cells of a CSV file are strings.
    Null fields of a Parquet file are left out of its rows, because every row of a Parquet file has every column. Blank lines
    are skipped.

    Raises DataError if the file is missing, empty, binary or of an unknown type, or if the content does not have the format
    that the file extension names.
    """
    kind = path.suffix.lower()
    if kind not in READERS:
        problem = f"unknown file type {kind!r}" if kind else "the file has no extension"
        raise DataError(problem, where=str(path), remedy=f"Give a file that ends in {', '.join(READERS)}.")
    empty = True
    with name_file_in_read_errors(path):
        if kind != ".parquet":
            _refuse_binary(path)
        for row in READERS[kind](path):
            empty = False
            yield row
    if empty:
        raise DataError("the file is empty", where=str(path), remedy="Give a file that contains data.")


@contextmanager
def name_file_in_read_errors(path: Path) -> Iterator[None]:
    """Convert an error of opening, reading or decoding the file `path` to a DataError that names `path`."""
    try:
        yield
    except FileNotFoundError:
        raise DataError("no such file", where=str(path), remedy="Check the path.") from None
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror or error}", where=str(path), remedy="Check the path.") from None
    except UnicodeDecodeError as error:
        raise _decode_error(path, error) from None


@contextmanager
def name_row_in_errors(where: str) -> Iterator[None]:
    """Name the row `where` in a DataError of the `with` block, such as that of a chat format."""
    try:
        yield
    except DataError as error:
        raise DataError(error.what, where=f"{where}: {error.where}", remedy=error.remedy) from None


def _decode_error(path: Path, error: UnicodeDecodeError) -> DataError:
    """Return the error of a file that cannot be decoded. It names the first such line, unless the file is UTF-16."""
    where = str(path)
    with open(path, "rb") as file:
        for line, raw in enumerate(file if error.encoding.startswith("utf-8") else (), 1):
            try:
                raw.decode()
            except UnicodeDecodeError as first:
                error, where = first, f"{path}:{line}"
                break
    return DataError(_decode_error_text(error), where=where, remedy=TO_UTF8)


def _decode_error_text(error: UnicodeDecodeError) -> str:
    return f"not {error.encoding.upper()}: byte 0x{error.object[error.start]:02x} at position {error.start}"


def _refuse_binary(path: Path) -> None:
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if head.startswith(UTF16):
        if READERS[path.suffix.lower()] is _read_csv:
            return
        raise DataError(
            "UTF-16 text", where=str(path), remedy="Convert the file to UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW."
        )
    control = sum(byte < 32 and byte not in b"\t\n\r" for byte in head)
    if head.startswith(BINARY) or control > CONTROL_AT_MOST * len(head):
        raise DataError(
            "not UTF-8 text: the first bytes look binary or compressed",
            where=str(path),
            remedy="Unpack the file, or convert it to UTF-8.",
        )


def _read_lines(path: Path) -> Iterator[DataRow | BadRow]:
    """Read JSON lines. Only a newline byte ends a line. Characters such as U+2028, which `str.splitlines` treats as line
    ends, do not end a line here."""
    with open(path, "rb") as file:
        for line, raw in enumerate(file, start=1):
            text = raw.removeprefix(BOM) if line == 1 else raw
            if text.strip():
                yield _parse_line(line, f"{path}:{line}", text)


def _parse_line(line: int, where: str, raw: bytes) -> DataRow | BadRow:
    try:
        raw.decode("utf-8")
        return _row_from_json(line, where, pydantic_core.from_json(raw))
    except UnicodeDecodeError as error:
        return BadRow(line, where, "not UTF-8", _decode_error_text(error), TO_UTF8)
    except ValueError as error:
        return BadRow(line, where, "not JSON", f"not JSON: {error}", ONE_OBJECT)


def _row_from_json(line: int, where: str, value: Any) -> DataRow | BadRow:
    if isinstance(value, dict):
        return DataRow(line, where, value)
    return BadRow(line, where, "not an object", f"a JSON {type(value).__name__}, not an object", ONE_OBJECT)


def _read_json(path: Path) -> Iterator[DataRow | BadRow]:
    data = path.read_bytes().removeprefix(BOM).strip()
    try:
        whole = pydantic_core.from_json(data) if data else []
    except ValueError as error:
        if not data.startswith(b"{") or b"\n" not in data:
            raise DataError(f"not JSON: {error}", where=str(path), remedy="Give a list of objects.") from None
        yield from _read_lines(path)  # JSON lines with the extension .json
        return
    if isinstance(whole, dict):
        lists = [] if "messages" in whole else [value for value in whole.values() if isinstance(value, list)]
        whole = lists[0] if len(lists) == 1 and all(isinstance(item, dict) for item in lists[0][:1]) else [whole]
    if not isinstance(whole, list):
        problem = f"a JSON {type(whole).__name__}, not a list of objects"
        raise DataError(problem, where=str(path), remedy="Give a list of objects.")
    yield from (_row_from_json(number, f"{path}:row {number}", value) for number, value in enumerate(whole, start=1))


@dataclass(frozen=True)
class CsvDialect:
    """The form of a CSV or TSV file. `begins` is the number of lines before the header."""

    separator: str
    line_end: str = "\n"
    encoding: str = "utf-8-sig"
    has_bom: bool = False
    begins: int = 0


def dialect_like(path: Path, out: Path) -> CsvDialect:
    """Return the form of a table `out` with rows of `path`: that of `path`, if it is a table with the same ending."""
    if path.suffix.lower() == out.suffix.lower():
        return csv_dialect(path)
    return CsvDialect("\t" if out.suffix.lower() == ".tsv" else ",")


def csv_dialect(path: Path) -> CsvDialect:
    """Return the form of a CSV or TSV file. TSV cells are separated by tabs. CSV cells are separated by the character that a first
    line such as `sep=;` names, which Excel writes, or else by the most frequent of comma, semicolon and tab in the header. The text
    is UTF-8, or UTF-16 with a byte order mark."""
    with open(path, "rb") as binary:
        head = binary.read(len(BOM))
    encoding = "utf-16" if head.startswith(UTF16) else "utf-8-sig"
    with open(path, encoding=encoding, newline="") as file:
        first = file.readline()
    named = re.fullmatch(r"sep=(.)\r?\n", first, re.IGNORECASE)
    separator = "\t" if path.suffix.lower() == ".tsv" else named[1] if named else max(",;\t", key=first.count)
    line_end = "\r\n" if first.endswith("\r\n") else "\n"
    return CsvDialect(separator, line_end, encoding, head == BOM or encoding == "utf-16", int(named is not None))


def csv_lines(rows: Iterable[Sequence[str]], like: CsvDialect) -> Iterator[bytes]:
    """Yield the lines of a CSV or TSV file of this form."""
    yield BOM * like.has_bom
    for cells in rows:
        text = io.StringIO()
        csv.writer(text, delimiter=like.separator, lineterminator=like.line_end).writerow(cells)
        yield text.getvalue().encode()


def _read_csv(path: Path) -> Iterator[DataRow | BadRow]:
    """Read a CSV or TSV file."""
    dialect = csv_dialect(path)
    with open(path, encoding=dialect.encoding, newline="") as file:
        rows = islice(file, dialect.begins, None)
        reader = csv.reader(rows, delimiter=dialect.separator, strict=True)
        names: list[str] = []
        line = 1 + dialect.begins
        try:
            for cells in reader:
                if not names:
                    names = _column_names(path, cells)
                elif any(cell.strip() for cell in cells):
                    yield _row_from_cells(line, f"{path}:{line}", names, cells)
                line = reader.line_num + 1 + dialect.begins
        except csv.Error as error:
            raise DataError(
                f"not CSV: {error}",
                where=f"{path}:{line}",
                remedy="Close or double the quotation marks of this record.",
            ) from None


def _column_names(path: Path, cells: list[str]) -> list[str]:
    names = [name.strip() for name in cells]
    if len(set(names)) < len(names):
        problem = f"the header repeats a column: {', '.join(names)}"
        raise DataError(problem, where=f"{path}:1", remedy="Give each column its own name.")
    return names


def _row_from_cells(line: int, where: str, names: list[str], cells: list[str]) -> DataRow | BadRow:
    if len(cells) == len(names):
        return DataRow(line, where, dict(zip(names, cells, strict=True)))
    problem = f"{len(cells)} cells, but the header has {len(names)} columns"
    return BadRow(line, where, "wrong number of cells", problem, "Put cells that contain separators in quotes.")


def _read_parquet(path: Path) -> Iterator[DataRow]:
    with name_file_in_parquet_errors(path):
        import pyarrow.parquet  # imported here because the import takes 0.3 s and other files do not need it

        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(ROWS_AT_ONCE):
            for values in batch.to_pylist():
                number += 1
                yield DataRow(number, f"{path}:row {number}", without_null(values))


@contextmanager
def name_file_in_parquet_errors(path: Path) -> Iterator[None]:
    """Convert the error of a missing file, or of a file that is not Parquet, to a DataError that names `path`."""
    import pyarrow

    try:
        yield
    except FileNotFoundError:
        raise DataError("no such file", where=str(path), remedy="Check the path.") from None
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"not Parquet: {error}", where=str(path), remedy="Write the file again.") from None


def without_null(value: Any) -> Any:
    """Return a JSON value without the keys whose value is None, at any depth.

    Parquet adds keys with the value None, because all rows of a Parquet file have the same keys.
    """
    if isinstance(value, dict):
        return {key: without_null(item) for key, item in value.items() if item is not None}
    return [without_null(item) for item in value] if isinstance(value, list) else value


READERS: dict[str, Callable[[Path], Iterator[DataRow | BadRow]]] = {
    ".jsonl": _read_lines,
    ".ndjson": _read_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
"""The function that reads each file type, keyed by file extension."""
