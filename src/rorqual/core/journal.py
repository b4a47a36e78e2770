"""Append-only files of JSON lines, for all records that must survive if the process is killed.

Each line is written with a single write, and an incomplete line is never read as a record. `append_line` is for files that
several processes write, such as ledgers, and for the metrics of a run. A `Journal` is for a file that only one process
writes, and calls `fsync`. A `Journal` can reserve disk space, so that paid answers are saved even if the disk is full.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from rorqual.core.errors import DataError, name_file_in_write_errors
from rorqual.core.lock import Closable, acquire_lock

ESCAPED = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""Characters that JSON allows in strings but some readers treat as line ends. `json_line` writes the characters in `ESCAPED`
as JSON escapes."""


def json_line(record: Mapping[str, Any]) -> bytes:
    """Serialise a record as one line of JSON in UTF-8. Lone surrogates are written as JSON escapes."""
    return json.dumps(record, ensure_ascii=False).translate(ESCAPED).encode("utf-8", "backslashreplace") + b"\n"


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append `record` as one line with a single write, so that lines of parallel processes do not interleave.

    If the file ends with an incomplete line, a newline is written before the line of `record`.
    """
    with name_file_in_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            _write_all(file.fileno(), b"\n" * (file.read(1) not in (b"", b"\n")) + json_line(record))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON object of each line of a file, even while another process writes to the file. Lines that are not JSON
    objects are skipped.

    If the file is missing, nothing is yielded.
    """
    with suppress(FileNotFoundError), open(path, "rb") as file:
        yield from (record for record in map(_parse_line, file) if record is not None)


def truncate_json_lines(path: Path, size: int) -> None:
    """Remove the lines after the first `size` bytes. If the file is missing, do nothing."""
    if path.is_file():
        os.truncate(path, min(size, path.stat().st_size))


class Journal(Closable):
    """A file of JSON lines that one process at a time may open.

    `append` writes complete lines and then calls `fsync`, unless the last `fsync` was less than `patience` seconds ago. Lines that are
    not yet synced survive a killed process, but not a power failure.

    Opening a `Journal` removes an incomplete last line of the file, which a killed process can leave behind. Raises
    RorqualError if another process has locked the file.
    """

    def __init__(self, path: Path, *, patience: float = 0.0) -> None:
        self.path, self.patience = path, patience
        self._synced = time.monotonic()
        self._writing = threading.Lock()
        remedy = "Wait for that process, or write to another file: otherwise the same samples are paid for twice."
        with ExitStack() as opened, name_file_in_write_errors(path):
            opened.enter_context(acquire_lock(path, remedy))
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            opened.callback(os.close, self._file)
            self._drop_torn_line()
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Close the file and release its lock. Calls after the first do nothing."""
        self._opened.close()

    def read(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Yield (`file:line`, offset in bytes, record) of each line. Raises DataError for a line that is not a JSON object."""
        return scan_journal(self.path)

    def append(self, records: Iterable[Mapping[str, Any]]) -> list[int]:
        """Append one line per record, all lines in one write, and return the offset of each line in bytes.

        If the write fails, as on a full disk, the file is truncated to its previous size.
        """
        lines = [json_line(record) for record in records]
        with self._writing, name_file_in_write_errors(self.path):
            start = os.fstat(self._file).st_size
            try:
                _write_all(self._file, b"".join(lines))
                if lines and time.monotonic() - self._synced >= self.patience:
                    os.fsync(self._file)
                    self._synced = time.monotonic()
            except OSError:
                os.ftruncate(self._file, start)
                raise
        return list(accumulate(map(len, lines), initial=start))[:-1]

    def _drop_torn_line(self) -> None:
        """Remove an incomplete last line of the file. After a power failure, the last line may end with a newline and still
        lack bytes before the newline."""
        start = end = 0
        last = b"{}"
        with open(self.path, "rb") as file:
            for last in file:
                start, end = end, end + len(last)
        if end and (not last.endswith(b"\n") or _parse_line(last) is None):
            os.ftruncate(self._file, start)
            os.fsync(self._file)


def scan_journal(path: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield (`file:line`, offset in bytes, record) of each line of a journal. Raises DataError for a line that is not a JSON object."""
    offset = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            record = _parse_line(raw)
            if record is None:
                remedy = "Delete this line, and repeat the command, which requests the deleted sample again."
                raise DataError("not a JSON object", where=f"{path}:{number}", remedy=remedy)
            yield f"{path}:{number}", offset, record
            offset += len(raw)


def _parse_line(raw: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(raw)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _write_all(file: int, raw: bytes) -> None:
    view = memoryview(raw)
    while view:
        view = view[os.write(file, view) :]
