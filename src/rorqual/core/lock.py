"""Lock files that allow one writing process at a time. A lock file names the process that holds the lock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
from abc import ABC, abstractmethod
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Self

from rorqual.core.errors import ConfigError, RorqualError

RUN_LOCK = ".lock"
BUSY = frozenset({errno.EWOULDBLOCK, errno.EACCES})
"""Error numbers of `flock` for a lock that another process holds."""


class Closable(ABC):
    """Base class of objects that a `with` block closes at its end."""

    @abstractmethod
    def close(self) -> None:
        """Close the object."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Lock(Closable):
    """An exclusive lock on the lock file `path`, held until `close`. Readers need no lock.

    The kernel holds the lock (`flock`), and releases the lock when the process ends, even if the process is killed. On a file
    system without locks, taking a lock always succeeds.

    Missing parent folders are created; `close` removes each created folder that is still empty.

    If another process holds the lock, raises a RorqualError that names `where` and the other process.
    """

    def __init__(self, path: Path, where: Path, remedy: str) -> None:
        self.path, self._created = path, list[Path]()
        try:
            self._created = [folder for folder in path.absolute().parents if not folder.exists()]
            while not self._try_lock(where, remedy):
                pass
        except OSError as error:
            self._remove_created_folders()
            raise RorqualError(
                f"cannot write: {error.strerror}", where=str(where), remedy="Free disk space or choose another folder."
            ) from error

    def _try_lock(self, where: Path, remedy: str) -> bool:
        """Lock the lock file. Return False if the previous holder of the lock removed or replaced the file first; the caller
        then retries."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # another process removed the folder after mkdir
            return False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in BUSY:
                holder = describe_holder(os.pread(self._file, 1000, 0))
                os.close(self._file)
                raise RorqualError(
                    f"another process is writing to this path{holder}", where=str(where), remedy=remedy
                ) from None
        try:
            same = os.path.samestat(os.fstat(self._file), os.stat(self.path))
        except FileNotFoundError:
            same = False
        if not same:
            os.close(self._file)
            return False
        with suppress(OSError):  # on a full disk the lock is held, but its file does not name the process
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(_process_identity()).encode(), 0)
        return True

    def close(self) -> None:
        """Release the lock and remove the lock file."""
        with suppress(OSError):
            self.path.unlink()
        os.close(self._file)
        self._remove_created_folders()

    def _remove_created_folders(self) -> None:
        with suppress(OSError):
            for folder in self._created:
                folder.rmdir()


def acquire_lock(path: Path, remedy: str) -> Lock:
    """Lock the file or folder `path` with a lock file in the parent folder of `path`.

    Use `acquire_lock` for a folder that is built under a temporary name and then renamed, and `acquire_run_lock` for all
    other folders.
    """
    return Lock(_lock_path(path), path, remedy)


def acquire_run_lock(folder: Path) -> Lock:
    """Lock a run folder, or another folder that is written in place, with a lock file inside the folder.

    Raises RorqualError if another process is writing to `folder` or is building `folder` under a temporary name.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError("not a folder", where=str(folder), remedy="Give another out=.")
    remedy = "Wait for it, or give another out=."
    lock = Lock(folder / RUN_LOCK, folder, remedy)
    if _lock_path(folder).exists():
        try:
            acquire_lock(folder, remedy).close()
        except BaseException:
            lock.close()
            raise
    return lock


def _lock_path(path: Path) -> Path:
    absolute = path.absolute()
    return absolute.parent / f".{absolute.name}.lock"


def _process_identity() -> dict[str, object]:
    # The command line is left out: it may contain an API key.
    began = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return {"process": os.getpid(), "host": platform.node(), "since": began}


def describe_holder(raw: bytes) -> str:
    """Describe the process that holds a lock: process id, host (unless the process is on this host), and the time when the
    lock was taken.

    `raw` is the content of the lock file.
    """
    try:
        holder = json.loads(raw)
        place = "" if holder["host"] == platform.node() else f" on {holder['host']}"
        return f": process {holder['process']}{place}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # the process has not written its name yet
        return ""
