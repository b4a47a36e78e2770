"""The cost ledger: what each stage of a piece of work took, in tokens, FLOPs, core-seconds, seconds and money.

It is a file of lines, each what was spent since the line before; a stage's cost is the sum of its lines. So a stage that
was killed and done again costs what both took, several processes may write one file, and no line is ever changed. While
a stage is open, a line is written every few seconds: a kill loses no more than that. What lies between stages is
`unaccounted`, and counted: the seconds of all entries are the wall clock of the whole.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rorqual.core.errors import RorqualError

UNACCOUNTED = "unaccounted"
"""Start-up, imports, and whatever else passes between two stages."""
CORE_HOUR = 0.05
"""USD for an hour of one core, about what clouds ask for a rented one. An assumption: pass another price where you know yours."""
BEAT = 2.0


@dataclass
class LedgerEntry:
    """What a stage spent. `seconds` and `core_seconds` (of this process and the children that it waited for) are the ledger's
    to count; the rest is the caller's: `tokens` and `flops` processed, problems `solved`, `paid` to others in USD."""

    stage: str
    tokens: int = 0
    flops: int = 0
    solved: int = 0
    paid: float = 0.0
    seconds: float = 0.0
    core_seconds: float = 0.0

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a step of training by its record in the metrics: what was trained on, what was sampled for it, and how many of
        the samples were right."""
        self.tokens += int(record["tokens"]) + int(record.get("sampled_tokens", 0))
        self.flops += int(record["flops"])
        self.solved += int(record.get("right", 0))

    def money(self, core_hour: float = CORE_HOUR) -> float:
        """USD: core-seconds at the price of a core-hour, and what was paid to others."""
        return self.core_seconds / 3600 * core_hour + self.paid

    def __add__(self, other: LedgerEntry) -> LedgerEntry:
        return LedgerEntry(self.stage, *(getattr(self, name) + getattr(other, name) for name in AMOUNTS))


AMOUNTS = tuple(field.name for field in fields(LedgerEntry) if field.name != "stage")


class Ledger:
    """Writes the ledger at `path` for one process. Open it, then `with ledger.of("stage") as entry: ...`; `close` at the end.

    `whole_process`: what the process spent before this line (start of Python, imports) is counted too, as unaccounted. A
    session that opens no stage writes nothing. Stages may be nested: time goes to the innermost.
    """

    def __init__(self, path: Path, *, whole_process: bool = False, every: float = BEAT) -> None:
        self.path, self.every = path, every
        self._open = [LedgerEntry(UNACCOUNTED)]
        self._said: dict[int, LedgerEntry] = {}
        self._lock = threading.RLock()
        self._mark = (process_began(), 0.0) if whole_process else (time.monotonic(), cpu_seconds())
        self._used = False

    @contextmanager
    def of(self, stage: str) -> Iterator[LedgerEntry]:
        """Count what is inside to `stage`, also where it raises; the entry holds what this call spent."""
        entry = LedgerEntry(stage)
        with self._lock:
            self._count()
            self._used = True
            self._open.append(entry)
        ended = threading.Event()
        beats = threading.Thread(target=self._beat, args=(ended,), daemon=True)
        beats.start()
        try:
            yield entry
        except BaseException:
            with suppress(RorqualError):  # what went wrong inside is what must be told
                self._settle(entry, ended, beats)
            raise
        self._settle(entry, ended, beats)

    def _settle(self, entry: LedgerEntry, ended: threading.Event, beats: threading.Thread) -> None:
        """Close a stage and write down the rest of it."""
        ended.set()
        beats.join()
        with self._lock:
            self._count()
            self._open.remove(entry)
            self._say(self._open[0])
            self._say(entry)
            self._said.pop(id(entry), None)

    def close(self) -> None:
        """Count what passed since the last stage. Closing twice counts nothing twice."""
        with self._lock:
            self._count()
            if self._used:
                self._say(self._open[0])

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(self.every):
            with self._lock, suppress(RorqualError):  # a full disk: the end of the stage will say so
                self._count()
                for entry in list(self._open):
                    self._say(entry)

    def _count(self) -> None:
        """Give the time since the last mark to the innermost open stage."""
        now = (time.monotonic(), cpu_seconds())
        entry = self._open[-1]
        entry.seconds += now[0] - self._mark[0]
        entry.core_seconds += now[1] - self._mark[1]
        self._mark = now

    def _say(self, entry: LedgerEntry) -> None:
        """Append what `entry` spent since it was last said."""
        said = self._said.get(id(entry), LedgerEntry(entry.stage))
        now = LedgerEntry(entry.stage, *(getattr(entry, name) for name in AMOUNTS))
        line = {name: getattr(now, name) - getattr(said, name) for name in AMOUNTS}
        line = {name: value for name, value in line.items() if value}
        if line:
            _append(self.path, {"stage": entry.stage} | line)
            self._said[id(entry)] = now


def cpu_seconds() -> float:
    """Processor seconds of this process, all threads, and of its children that have ended and were waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def process_began() -> float:
    """When this process began, on the clock of `time.monotonic`; where the system does not tell, now."""
    try:
        fields_after_name = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        since_boot = int(fields_after_name[19]) / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic()


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """One write, at the end: whole among those of other processes. It begins a line too, for the last one may be torn."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            torn = file.tell() > 0 and not _ends_whole(path)
            file.write((b"\n" if torn else b"") + json.dumps(line).encode() + b"\n")
    except OSError as error:
        raise RorqualError(
            f"cannot write: {error.strerror}",
            where=str(path),
            remedy="Free disk space and repeat the command: it goes on where it was.",
        ) from error


def _ends_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read_ledger(path: Path) -> list[LedgerEntry]:
    """What each stage cost so far, in the order in which they began; no file is an empty ledger. A torn line is left out."""
    found: dict[str, LedgerEntry] = {}
    for raw in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            line = json.loads(raw)
            entry = LedgerEntry(str(line.pop("stage")), **{name: line.get(name, 0) for name in AMOUNTS})
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
        found[entry.stage] = found[entry.stage] + entry if entry.stage in found else entry
    return list(found.values())


def total(entries: Iterable[LedgerEntry], name: str = "all") -> LedgerEntry:
    """The sum of entries, as an entry called `name`. Seconds of processes that ran side by side add up too."""
    return sum(entries, LedgerEntry(name))
