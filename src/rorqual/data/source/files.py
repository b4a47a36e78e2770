"""Files that may not be what they say: read with the file and the line in every error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rorqual.core.errors import DataError

BOM = b"\xef\xbb\xbf"


def read_bytes(path: Path) -> bytes:
    """The file's bytes, without a byte-order mark; a missing, unreadable or empty file is a `DataError`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError("no such file", where=str(path), remedy="Check the path.") from None
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=str(path), remedy="Check the path.") from None
    data = data.removeprefix(BOM)
    if not data.strip():
        raise DataError("the file is empty", where=str(path), remedy="Give a file with data in it.")
    return data


def decode(data: bytes, where: str) -> str:
    """UTF-8 bytes as text; `where` names the file, with its line if there is one."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}",
            where=where,
            remedy="Convert the file to UTF-8.",
        ) from None


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's object with its place, `file:line`. Blank lines are passed over.

    Lines end with a newline byte alone: U+2028 and its like, which `splitlines` takes for line ends, belong to the text.
    """
    for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        text = decode(line, where)
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON: {error}", where=where, remedy="Write one JSON object on each line.") from None
        if not isinstance(row, dict):
            raise DataError(
                f"a JSON {type(row).__name__}, not an object", where=where, remedy="Write one JSON object on each line."
            )
        yield where, row


def parquet_rows(path: Path, any_of: tuple[tuple[str, ...], ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row as a dictionary, with its place, `file:row N`. The table must have all columns of one of `any_of`."""
    import pyarrow  # here, because it takes a third of a second that a JSONL file need not pay
    import pyarrow.parquet

    try:
        if not path.stat().st_size:
            raise DataError("the file is empty", where=str(path), remedy="Give a file with data in it.")
        table = pyarrow.parquet.ParquetFile(path)
        columns = set(table.schema_arrow.names)
        if not any(set(names) <= columns for names in any_of):
            wanted = " or ".join("+".join(names) for names in any_of)
            raise DataError(
                f"it has the columns {', '.join(sorted(columns))}",
                where=str(path),
                remedy=f"It needs {wanted}. A task's own files are read with task=NAME beside data=.",
            )
        number = 0
        for piece in table.iter_batches(batch_size=1024):
            for row in piece.to_pylist():
                number += 1
                yield f"{path}:row {number}", row
    except FileNotFoundError:
        raise DataError("no such file", where=str(path), remedy="Check the path.") from None
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"not Parquet: {error}", where=str(path), remedy="Write the file again.") from None
    if not number:
        raise DataError("the file is empty", where=str(path), remedy="Give a file with data in it.")
