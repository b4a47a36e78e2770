"""An output file that grows line by line, in any order, and is there only when it is whole: no kill loses an answer.

Three files: `OUT.partial` takes the lines as they come, `OUT.made` says what they were made of, and `OUT` is put together from
the first, in the order of the input, when the last line is there. What is begun again of the same input with the same settings
goes on where it was; of others it is refused.
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
NONE = -1
ESCAPED = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""What some readers take for the end of a line, though JSON lets it stand in a text."""


def to_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line of JSON in UTF-8."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).translate(ESCAPED).encode() + b"\n"


class Partial:
    """`made`: what the answers depend on. `rows` lines are to come, numbered to `last`. One process at a time.

    `count` lines are there, `errors` of them say why a row was refused. `whole`: the output itself is there already. A line that is torn
    (a kill, a full disk) is cut off, with what follows it.
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
        """Let another process go on. What was added stays."""
        if self._file != NONE:
            os.close(self._file)
            self._file = NONE
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def has(self, line: int) -> bool:
        """Whether that line's answer is there."""
        return self._places[line] != NONE

    def add(self, lines: Mapping[int, Mapping[str, Any]]) -> None:
        """Write records, by the number of their line, in one write: a kill of the process loses none of them afterwards."""
        raw = {line: to_line(record) for line, record in lines.items()}
        try:
            view = memoryview(b"".join(raw.values()))
            while view:
                view = view[os.write(self._file, view) :]
            if time.monotonic() - self._synced > SYNC_SECONDS:  # for a power cut
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError as error:
            os.ftruncate(self._file, self._end)
            self._refuse(error)
        for line, written in raw.items():
            self._note(line, len(written), "error" in lines[line])

    def finish(self) -> None:
        """Put the output together. The lines as they came are removed once it is there."""
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
        there, begun = self.out.exists(), self.path.exists()
        old = self._read_made()
        # Between its two files' beginnings a kill, or a full disk, leaves the first of them empty.
        begun = begun and bool(old or self.path.stat().st_size)
        if there or begun:
            self._check(old, made)
        if there and not begun:
            with open(self.out, "rb") as file:
                self._scan(file)
            if self.count != self.rows:
                self._changed(f"{self.count} of its {self.rows} lines are there: it was changed")
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
        """Find the lines that are whole, up to the first that is not."""
        for raw in file:
            try:
                record = json.loads(raw) if raw.endswith(b"\n") else {}
                line = record["line"]
                known = 0 < line < len(self._places) and not self.has(line)
            except (ValueError, KeyError, TypeError):
                return
            if not known:
                return
            self._note(line, len(raw), "error" in record)

    def _note(self, line: int, size: int, error: bool) -> None:
        self._places[line] = self._end
        self._end += size
        self.count += 1
        self.errors += error

    def _read_made(self) -> dict[str, Any]:
        try:
            found = json.loads(self.made_file.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _check(self, old: dict[str, Any], made: dict[str, Any]) -> None:
        if not old:
            self._changed(f"it is there already, and no {self.made_file.name} says of what it was made")
        differs = sorted(key for key in old.keys() | made.keys() if old.get(key) != made.get(key))
        if differs:
            shown = ", ".join(f"{key} was {_short(old.get(key))} and is {_short(made.get(key))}" for key in differs[:4])
            self._changed(f"it was begun with another file or other settings: {shown}")

    def _changed(self, what: str) -> NoReturn:
        names = f"{self.out.name}, {self.path.name} and {self.made_file.name}"
        raise ConfigError(
            what,
            where=str(self.out),
            remedy=f"Choose another out=, set it as it was, or remove {names} to begin again.",
        )

    def _refuse(self, error: OSError) -> NoReturn:
        raise RorqualError(
            f"cannot write: {error.strerror}",
            where=str(self.path),
            remedy="Free disk space or mend the folder, and repeat the command: it goes on from what is kept.",
        ) from error


def check_place(out: Path) -> None:
    """Refuse what cannot be written to, before a model is loaded and without writing."""
    if out.is_dir():
        raise ConfigError("it is a folder", where=str(out), remedy="Name a file: out=FILE.jsonl.")
    above = out.absolute().parent
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        what = "not writable" if above.is_dir() else "not a folder"
        raise ConfigError(f"{above} is {what}", where=str(out), remedy="Choose another out=.")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 24 else text[:20] + "..."
