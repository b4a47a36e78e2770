"""A file of JSON lines to which things are added as they happen, so that no kill loses what was there."""

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
"""Disk space that is held back, so that answers which are paid for and under way can still be kept when the disk fills up."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class DiskFull(RorqualError):
    """The disk filled up. What had to be kept is kept; nothing more should be begun."""


class Journal:
    """`lines` are those that were there; `append` adds whole lines and returns when they are on the disk, or, with `patience`, when the system
    has them, so that no kill of the process loses them, and are on the disk after so many seconds at most if more come.

    A last line that is torn (a kill or a full disk while writing) is cut off; any other that is not JSON is refused. One process at a
    time: a second is refused. `spare`: hold back some disk space beside the file.
    """

    def __init__(self, path: Path, *, spare: bool = False, patience: float = 0.0) -> None:
        self.path, self.patience = path, patience
        self._synced = time.monotonic()
        self._writing = threading.Lock()
        self._spare = path.with_name(f".{path.name}.spare") if spare else None
        self._lock = own(path, "Wait for it, or write elsewhere: the same sample would be paid for twice.")
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
        """Let another process have it."""
        os.close(self._file)
        if self._spare is not None:
            self._spare.unlink(missing_ok=True)
        self._lock.close()

    def append(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Add lines in one write. A `DiskFull` where the disk is full: what was held back has been used to keep these."""
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
                    "the disk is full; what was under way has been kept",
                    where=str(self.path),
                    remedy="Free disk space and repeat the command: it goes on from there.",
                ) from error

    def _write(self, raw: bytes) -> None:
        """All of it and to the disk, or nothing: what a full disk took of it is cut off again."""
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
            elif number == len(pieces):  # its end was written and its middle not: a power cut
                whole = whole[: len(whole) - len(piece) - 1]
            else:
                raise DataError(
                    "not a JSON object",
                    where=f"{self.path}:{number}",
                    remedy="Delete that line; what it held is asked for again.",
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
            remedy="Free disk space, or raise the limit, and repeat the command: it goes on from what is kept.",
        )
