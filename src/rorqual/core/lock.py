"""Lock files that let one process write at a time. A lock names its holder and is released when that process ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from rorqual.core.errors import ConfigError, RorqualError

RUN_LOCK = ".lock"
BUSY = frozenset({errno.EWOULDBLOCK, errno.EACCES})


class Lock:
    """The lock file `path`, held until `close`. It is a kernel lock, so a killed process holds none. Readers need no lock.

    Missing parent folders are created, and removed at the end if they are still empty. If nothing else changed in the folder,
    its modification time is restored, so resuming a finished job leaves no trace.

    Raises RorqualError at `where` that names the process holding the lock. A file system without locks refuses nothing.
    """

    def __init__(self, path: Path, where: Path, remedy: str) -> None:
        self.path, self._made = path, list[Path]()
        try:
            self._made = [folder for folder in path.absolute().parents if not folder.exists()]
            while not self._take(where, remedy):
                pass
        except OSError as error:
            self._unmake()
            raise RorqualError(
                f"cannot write: {error.strerror}", where=str(where), remedy="Free disk space or choose another folder."
            ) from error

    def _take(self, where: Path, remedy: str) -> bool:
        """Lock the file; return False if it was replaced meanwhile, since its last holder may have removed it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            before = os.stat(self.path.parent)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # the folder was removed too
            return False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in BUSY:
                holder = named(os.pread(self._file, 1000, 0))
                os.close(self._file)
                raise RorqualError(f"another process is writing it{holder}", where=str(where), remedy=remedy) from None
        try:
            same = os.path.samestat(os.fstat(self._file), os.stat(self.path))
        except FileNotFoundError:
            same = False
        if not same:
            os.close(self._file)
            return False
        with suppress(OSError):  # on a full disk the lock holds, but does not name its process
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(_this_process()).encode(), 0)
        self._before, self._began = before, os.stat(self.path.parent).st_mtime_ns
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock."""
        with suppress(OSError):
            unchanged = os.stat(self.path.parent).st_mtime_ns == self._began
            self.path.unlink()
            if unchanged:
                os.utime(self.path.parent, ns=(self._before.st_atime_ns, self._before.st_mtime_ns))
        os.close(self._file)
        self._unmake()

    def _unmake(self) -> None:
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()


def own(path: Path, remedy: str) -> Lock:
    """Lock a file, or a folder that is built in a temporary folder and then renamed."""
    return Lock(_beside(path), path, remedy)


def own_run(folder: Path) -> Lock:
    """Lock a run folder, or any folder that is written in place.

    Raises RorqualError also if another process is building the folder under a temporary name.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError("not a folder", where=str(folder), remedy="Give another out=.")
    remedy = "Wait for it, or give another out=."
    lock = Lock(folder / RUN_LOCK, folder, remedy)
    if _beside(folder).exists():
        try:
            own(folder, remedy).close()
        except BaseException:
            lock.close()
            raise
    return lock


def _beside(path: Path) -> Path:
    whole = path.absolute()
    return whole.parent / f".{whole.name}.lock"


def _this_process() -> dict[str, object]:
    # The command line is left out: it may contain an API key.
    began = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return {"process": os.getpid(), "host": platform.node(), "since": began}


def named(raw: bytes) -> str:
    """Return the process that a lock file names: its id, its host if that is another one, and since when it holds the lock."""
    try:
        told = json.loads(raw)
        place = "" if told["host"] == platform.node() else f" on {told['host']}"
        return f": process {told['process']}{place}, since {told['since']}"
    except (ValueError, KeyError, TypeError):  # the holder has not written its name yet
        return ""
