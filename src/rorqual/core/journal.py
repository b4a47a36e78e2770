"""An append-only file of JSON lines that survives a killed process."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rorqual.core.errors import DataError, RorqualError
from rorqual.core.lock import own

SPARE_BYTES = 1 << 20
"""Bytes reserved on disk. If the disk fills up, this space is freed to save pending answers, which were already paid for."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Error numbers of a full disk and of an exceeded disk quota."""


class DiskFull(RorqualError):
    """A full disk. The pending lines were saved in the reserved space, but further writes will fail."""


class Journal:
    """An append-only file of JSON lines, for one process at a time.

    `lines` are the entries that the file had when it was opened. `append` writes complete lines and then calls `fsync`, unless
    the last `fsync` was less than `patience` seconds ago. Lines that are not yet synced survive a killed process, but not a
    power failure.

    Opening the file removes an incomplete last line, which a killed process or a full disk can leave behind. `spare` reserves
    `SPARE_BYTES` of disk space in a hidden file in the folder of the journal. Raises DataError if any line but the last is
    not a JSON object, and RorqualError if another process has locked the file.
    """

    def __init__(self, path: Path, *, spare: bool = False, patience: float = 0.0) -> None:
        self.path, self.patience = path, patience
        self._synced = time.monotonic()
        self._writing = threading.Lock()
        self._spare = path.with_name(f".{path.name}.spare") if spare else None
        self._lock = own(
            path, "Wait for that process, or write to another file: otherwise the same samples are paid for twice."
        )
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            self._lock.close()
            raise self._write_error(error) from error
        try:
            self.lines = self._read()
            self._reserve_spare()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and release its lock."""
        os.close(self._file)
        if self._spare is not None:
            self._spare.unlink(missing_ok=True)
        self._lock.close()

    def append(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Append one line per entry, all in one write.

        Raises DiskFull if the disk is full and the lines were saved in the reserved space.
        """
        raw = b"".join(json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in entries)
        if not raw:
            return
        with self._writing:
            try:
                self._write(raw)
            except OSError as error:
                if error.errno not in FULL or self._spare is None or not self._spare.exists():
                    raise self._write_error(error) from error
                self._spare.unlink()
                try:
                    self._write(raw)
                except OSError as again:
                    raise self._write_error(again) from again
                raise DiskFull(
                    "the disk is full; the pending answers were saved",
                    where=str(self.path),
                    remedy="Free disk space and repeat the command: it resumes from the saved answers.",
                ) from error

    def _write(self, raw: bytes) -> None:
        """Write all bytes, or none: if the disk fills up during the write, the file is truncated to its previous size."""
        size = os.fstat(self._file).st_size
        view = memoryview(raw)
        try:
            while view:
                view = view[os.write(self._file, view) :]
            if time.monotonic() - self._synced >= self.patience:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError:
            os.ftruncate(self._file, size)
            raise

    def _read(self) -> list[dict[str, Any]]:
        raw = self.path.read_bytes()
        complete = raw[: raw.rfind(b"\n") + 1]
        lines = complete.split(b"\n")[:-1]
        entries: list[dict[str, Any]] = []
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if isinstance(entry, dict):
                entries.append(entry)
            elif number == len(lines):  # after a power failure, a line can have its newline but lack bytes before it
                complete = complete[: len(complete) - len(line) - 1]
            else:
                raise DataError(
                    "not a JSON object",
                    where=f"{self.path}:{number}",
                    remedy="Delete this line, and repeat the command, which requests the deleted sample again.",
                )
        if len(complete) < len(raw):
            os.ftruncate(self._file, len(complete))
            os.fsync(self._file)
        return entries

    def _reserve_spare(self) -> None:
        if self._spare is None:
            return
        try:
            with open(self._spare, "wb") as file:
                file.write(bytes(SPARE_BYTES))
        except OSError as error:
            self._spare.unlink(missing_ok=True)
            raise self._write_error(error) from error

    def _write_error(self, error: OSError) -> RorqualError:
        return RorqualError(
            f"cannot write: {error.strerror}",
            where=str(self.path),
            remedy="Free disk space, or raise the limit or quota, and repeat the command: it resumes from the saved lines.",
        )
