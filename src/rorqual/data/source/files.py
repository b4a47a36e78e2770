"""Readers of user files. Every error names the file and, if known, the line or row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rorqual.core.errors import DataError

BOM = b"\xef\xbb\xbf"


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file without its byte-order mark. Raises DataError if the file is missing, unreadable or empty."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError("no such file", where=str(path), remedy="Check the path.") from None
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=str(path), remedy="Check the path.") from None
    data = data.removeprefix(BOM)
    if not data.strip():
        raise DataError("the file is empty", where=str(path), remedy="Give a file that contains data.")
    return data


def decode(data: bytes, where: str) -> str:
    """Decode UTF-8. `where` is the location in errors: the file, and the line if known."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}",
            where=where,
            remedy="Convert the file to UTF-8, such as: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW.",
        ) from None


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (`file:line`, object) for each line of a JSONL file. Blank lines are skipped.

    Only a newline byte ends a line. Characters such as U+2028, which `str.splitlines` treats as line ends, are part of a line.
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
                f"the line is a JSON {type(row).__name__}, not an object",
                where=where,
                remedy="Write one JSON object on each line.",
            )
        yield where, row


def parquet_rows(path: Path, any_of: tuple[tuple[str, ...], ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (`file:row N`, dict) for each row of a Parquet file.

    Raises DataError unless the file has all columns of at least one tuple in `any_of`.
    """
    import pyarrow  # imported here because the import takes about 0.3 s and JSONL files do not need pyarrow
    import pyarrow.parquet

    try:
        if not path.stat().st_size:
            raise DataError("the file is empty", where=str(path), remedy="Give a file that contains data.")
        table = pyarrow.parquet.ParquetFile(path)
        columns = set(table.schema_arrow.names)
        if not any(set(names) <= columns for names in any_of):
            wanted = " or ".join("+".join(names) for names in any_of)
            raise DataError(
                f"columns are missing: the file has {', '.join(sorted(columns))}",
                where=str(path),
                remedy=f"The file needs {wanted}. If the file belongs to a task, add task=NAME.",
            )
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:row {number}", row
    except FileNotFoundError:
        raise DataError("no such file", where=str(path), remedy="Check the path.") from None
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"not Parquet: {error}", where=str(path), remedy="Write the file again.") from None
    if not number:
        raise DataError("the file is empty", where=str(path), remedy="Give a file that contains data.")


def count_parquet_rows(path: Path) -> int:
    """Return the number of rows of a Parquet file from its footer. Raises DataError if the file is not Parquet."""
    import pyarrow
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.ParquetFile(path).metadata.num_rows)
    except FileNotFoundError:
        raise DataError("no such file", where=str(path), remedy="Check the path.") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"not Parquet: {error}", where=str(path), remedy="Write the file again.") from None
