"""A resumable JSONL output file. A killed process loses no answers.

There are three files. `OUT.partial` collects the output lines in the order in which the answers finish. `OUT.made`
records the input and the settings. When all lines exist, they are written to `OUT` in the order of the input. A command
that is repeated with the same input and settings resumes. With a different input or settings,
the command raises an error.
"""

from __future__ import annotations

import json
import mmap
import os
import time
from array import array
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn

from rorqual.core.errors import ConfigError, RorqualError
from rorqual.core.lock import Lock, own
from rorqual.core.records import write_json

SYNC_SECONDS = 5.0
"""Minimum number of seconds between two `fsync` calls."""
NONE = -1
ESCAPED = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""Characters that JSON allows in strings but some readers treat as line ends. The output writes these characters as escapes."""


def to_line(record: Mapping[str, Any]) -> bytes:
    """Serialise a record as one line of JSON in UTF-8."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).translate(ESCAPED).encode() + b"\n"


class Partial:
    """An output file in progress. Only one process at a time may open it.

    `made` holds all settings that the answers depend on. The complete output has `rows` lines. `last` is the line
    number of the last row in the prompt file. `count` is the number of lines written so far, `errors` is the number of
    these lines with an error, and `whole` tells whether the complete output exists. If a killed process or a full disk
    left an incomplete line, opening removes this line and all lines after it.

    Raises ConfigError if the existing files were written with a different input or settings, or if the output was changed.
    """

    def __init__(self, out: Path, made: Mapping[str, Any], *, rows: int, last: int) -> None:
        self.out, self.rows = out, rows
        self.path, self.made_file = out.with_name(f"{out.name}.partial"), out.with_name(f"{out.name}.made")
        self.count = self.errors = 0
        self.whole = False
        self._places = array("q", [NONE]) * (last + 1)
        self._end, self._synced, self._file = 0, time.monotonic(), NONE
        self._lock: Lock | None = None
        check_place(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._begin(dict(made))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and release the lock. The lines remain in `OUT.partial`."""
        if self._file != NONE:
            os.close(self._file)
            self._file = NONE
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def has(self, line: int) -> bool:
        """Return whether the answer to the row `line` exists."""
        return self._places[line] != NONE

    def add(self, lines: Mapping[int, Mapping[str, Any]]) -> None:
        """Append records in one write. `lines` maps line numbers to records. After `add` returns, the records are not
        lost if the process is killed."""
        raw = {line: to_line(record) for line, record in lines.items()}
        try:
            view = memoryview(b"".join(raw.values()))
            while view:
                view = view[os.write(self._file, view) :]
            if time.monotonic() - self._synced > SYNC_SECONDS:  # limits how many answers a power failure can destroy
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError as error:
            os.ftruncate(self._file, self._end)
            self._refuse(error)
        for line, written in raw.items():
            self._note(line, len(written), "error" in lines[line])

    def finish(self) -> None:
        """Write the complete output in the order of the input, and remove `OUT.partial`."""
        assert self.count == self.rows
        temporary = self.out.with_name(f".{self.out.name}.{os.getpid()}")
        try:
            with open(temporary, "wb") as file, mmap.mmap(self._file, 0, prot=mmap.PROT_READ) as lines:
                for place in self._places:
                    if place != NONE:
                        file.write(lines[place : lines.find(b"\n", place) + 1])
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.out)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._refuse(error)
        self.path.unlink()
        self.whole = True

    def _begin(self, made: dict[str, Any]) -> None:
        """Open or create the files, and index the lines that exist."""
        finished, begun = self.out.exists(), self.path.exists()
        old = self._read_made()
        # A process that was killed while it created the files may leave an empty OUT.partial and no OUT.made. In this
        # case, OUT.partial is ignored.
        begun = begun and bool(old or self.path.stat().st_size)
        if finished or begun:
            self._check(old, made)
        if finished and not begun:
            with open(self.out, "rb") as file:
                self._scan(file)
            if self.count != self.rows:
                self._changed(f"the complete output was changed: {self.count} of {self.rows} lines are valid")
            self.whole = True
            return
        self._lock = own(self.path, "Wait for it, or choose another out=.")
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            self._refuse(error)
        if old != made:
            write_json(self.made_file, made)
        with open(self.path, "rb") as file:
            self._scan(file)
        os.ftruncate(self._file, self._end)

    def _scan(self, file: BinaryIO) -> None:
        """Index the lines before the first invalid line."""
        for raw in file:
            try:
                record = json.loads(raw) if raw.endswith(b"\n") else {}
                line = record["line"]
                valid = 0 < line < len(self._places) and not self.has(line)
            except (ValueError, KeyError, TypeError):
                return
            if not valid:
                return
            self._note(line, len(raw), "error" in record)

    def _note(self, line: int, size: int, error: bool) -> None:
        self._places[line] = self._end
        self._end += size
        self.count += 1
        self.errors += error

    def _read_made(self) -> dict[str, Any]:
        try:
            made = json.loads(self.made_file.read_bytes())
        except (OSError, ValueError):
            return {}
        return made if isinstance(made, dict) else {}

    def _check(self, old: dict[str, Any], made: dict[str, Any]) -> None:
        if not old:
            self._changed(
                f"the file exists, but {self.made_file.name}, which records its input and settings, is missing"
            )
        differs = sorted(key for key in old.keys() | made.keys() if old.get(key) != made.get(key))
        if differs:
            shown = ", ".join(f"{key} was {_short(old.get(key))} and is {_short(made.get(key))}" for key in differs[:4])
            self._changed(f"the output was started with a different input or settings: {shown}")

    def _changed(self, what: str) -> NoReturn:
        names = f"{self.out.name}, {self.path.name} and {self.made_file.name}"
        raise ConfigError(
            what,
            where=str(self.out),
            remedy=f"Choose another out=, restore the old settings, or remove {names} to start again.",
        )

    def _refuse(self, error: OSError) -> NoReturn:
        raise RorqualError(
            f"cannot write: {error.strerror}",
            where=str(self.path),
            remedy="Free disk space or make the folder writable, and repeat the command: it resumes where it stopped.",
        ) from error


def check_place(out: Path) -> None:
    """Raise ConfigError if the file `out` cannot be written. Call this function before loading a model; it writes nothing."""
    if out.is_dir():
        raise ConfigError("out is a folder", where=str(out), remedy="Give a file: out=FILE.jsonl.")
    parent = out.absolute().parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        what = "not writable" if parent.is_dir() else "not a folder"
        raise ConfigError(f"{parent} is {what}", where=str(out), remedy="Choose another out=.")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 24 else text[:20] + "..."
