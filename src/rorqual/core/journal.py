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
"""Disk space held in reserve. When the disk fills up, it takes the answers in flight, which are already paid for."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class DiskFull(RorqualError):
    """The disk filled up. The lines in flight were saved; start no new work."""


class Journal:
    """An append-only file of JSON lines, for one process at a time.

    `lines` are the lines that the file held when it was opened. `append` adds whole lines and returns once they are on disk.
    With `patience`, it may return once the operating system has the lines. A killed process then loses nothing, and the next
    append after `patience` seconds writes them to disk.

    An incomplete last line, left by a kill or a full disk, is cut off. `spare` reserves `SPARE_BYTES` of disk space beside
    the file. Raises DataError if any other line is not JSON, and RorqualError if another process holds the file.
    """

    def __init__(self, path: Path, *, spare: bool = False, patience: float = 0.0) -> None:
        self.path, self.patience = path, patience
        self._synced = time.monotonic()
        self._writing = threading.Lock()
        self._spare = path.with_name(f".{path.name}.spare") if spare else None
        self._lock = own(path, "Wait for it, or write to another file: both would pay for the same samples.")
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            self._lock.close()
            raise self._refusal(error) from error
        try:
            self.lines = self._read()
            self._hold_back()
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
        """Add lines in one write.

        Raises DiskFull if the disk is full; the reserved space has then been used to save these lines.
        """
        raw = b"".join(json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in entries)
        if not raw:
            return
        with self._writing:
            try:
                self._write(raw)
            except OSError as error:
                if error.errno not in FULL or self._spare is None or not self._spare.exists():
                    raise self._refusal(error) from error
                self._spare.unlink()
                try:
                    self._write(raw)
                except OSError as again:
                    raise self._refusal(again) from again
                raise DiskFull(
                    "the disk is full; the answers in flight were saved",
                    where=str(self.path),
                    remedy="Free disk space and repeat the command: it resumes from there.",
                ) from error

    def _write(self, raw: bytes) -> None:
        """Write all bytes to disk or none: a partial write on a full disk is cut off again."""
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
        whole = raw[: raw.rfind(b"\n") + 1]
        pieces = whole.split(b"\n")[:-1]
        found: list[dict[str, Any]] = []
        for number, piece in enumerate(pieces, start=1):
            try:
                line = json.loads(piece)
            except ValueError:
                line = None
            if isinstance(line, dict):
                found.append(line)
            elif number == len(pieces):  # a power cut can write the end of a line and not its middle
                whole = whole[: len(whole) - len(piece) - 1]
            else:
                raise DataError(
                    "not a JSON object",
                    where=f"{self.path}:{number}",
                    remedy="Delete that line; its content is requested again.",
                )
        if len(whole) < len(raw):
            os.ftruncate(self._file, len(whole))
            os.fsync(self._file)
        return found

    def _hold_back(self) -> None:
        if self._spare is None:
            return
        try:
            with open(self._spare, "wb") as file:
                file.write(bytes(SPARE_BYTES))
        except OSError as error:
            self._spare.unlink(missing_ok=True)
            raise self._refusal(error) from error

    def _refusal(self, error: OSError) -> RorqualError:
        return RorqualError(
            f"cannot write: {error.strerror}",
            where=str(self.path),
            remedy="Free disk space, or raise the limit, and repeat the command: it resumes from the saved lines.",
        )
