"""The cost ledger: what each stage of a job used, in tokens, FLOPs, core-seconds, seconds and money.

The ledger is an append-only file of JSON lines. Each line holds the amounts since the line before, and a stage's cost is the
sum of its lines. A stage that was killed and repeated therefore costs both attempts, and several processes may write one
file. An open stage writes a line every few seconds, so a kill loses no more than that. Time between stages is counted as
`unaccounted`: the seconds of all entries add up to the wall-clock time of the job.
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
"""The stage for time outside all stages, such as start-up and imports."""
CORE_HOUR = 0.05
"""Assumed price of one core-hour in USD, about what clouds charge. Pass another price if you know yours."""
BEAT = 2.0


@dataclass
class LedgerEntry:
    """The amounts that a stage used.

    The ledger counts `seconds` and `core_seconds` (of this process and of the child processes it waited for). The caller
    counts the rest: `tokens` and `flops` processed, problems `solved`, and `paid`, the USD paid to remote providers.
    """

    stage: str
    tokens: int = 0
    flops: int = 0
    solved: int = 0
    paid: float = 0.0
    seconds: float = 0.0
    core_seconds: float = 0.0

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one training step from its metrics record: trained tokens, sampled tokens, FLOPs and correct samples."""
        self.tokens += int(record["tokens"]) + int(record.get("sampled_tokens", 0))
        self.flops += int(record["flops"])
        self.solved += int(record.get("right", 0))

    def money(self, core_hour: float = CORE_HOUR) -> float:
        """Return the cost in USD: core-seconds at `core_hour` USD an hour, plus `paid`."""
        return self.core_seconds / 3600 * core_hour + self.paid

    def __add__(self, other: LedgerEntry) -> LedgerEntry:
        return LedgerEntry(self.stage, *(getattr(self, name) + getattr(other, name) for name in AMOUNTS))


AMOUNTS = tuple(field.name for field in fields(LedgerEntry) if field.name != "stage")


class Ledger:
    """Writes the ledger at `path` for one process: `with ledger.of("stage") as entry: ...`, then `close`.

    `whole_process` also counts the time before this object was made (start of Python, imports) as unaccounted. A ledger
    without any stage writes nothing. Stages may be nested: time counts for the innermost.
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
        """Count the time of the `with` body for `stage`, even if it raises. The entry holds the amounts of this call."""
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
            with suppress(RorqualError):  # the exception from the body is the one to report
                self._settle(entry, ended, beats)
            raise
        self._settle(entry, ended, beats)

    def _settle(self, entry: LedgerEntry, ended: threading.Event, beats: threading.Thread) -> None:
        """Close a stage and write its remaining amounts."""
        ended.set()
        beats.join()
        with self._lock:
            self._count()
            self._open.remove(entry)
            self._say(self._open[0])
            self._say(entry)
            self._said.pop(id(entry), None)

    def close(self) -> None:
        """Write the time since the last stage. A second call adds nothing."""
        with self._lock:
            self._count()
            if self._used:
                self._say(self._open[0])

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(self.every):
            with self._lock, suppress(RorqualError):  # a full disk is reported when the stage ends
                self._count()
                for entry in list(self._open):
                    self._say(entry)

    def _count(self) -> None:
        """Add the time since the last count to the innermost open stage."""
        now = (time.monotonic(), cpu_seconds())
        entry = self._open[-1]
        entry.seconds += now[0] - self._mark[0]
        entry.core_seconds += now[1] - self._mark[1]
        self._mark = now

    def _say(self, entry: LedgerEntry) -> None:
        """Append the amounts of `entry` since its last line."""
        said = self._said.get(id(entry), LedgerEntry(entry.stage))
        now = LedgerEntry(entry.stage, *(getattr(entry, name) for name in AMOUNTS))
        line = {name: getattr(now, name) - getattr(said, name) for name in AMOUNTS}
        line = {name: value for name, value in line.items() if value}
        if line:
            _append(self.path, {"stage": entry.stage} | line)
            self._said[id(entry)] = now


def cpu_seconds() -> float:
    """Return the CPU seconds of this process (all threads) and of the child processes it has waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def process_began() -> float:
    """Return the start time of this process on the clock of `time.monotonic`, or now if the system does not report it."""
    try:
        fields_after_name = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        since_boot = int(fields_after_name[19]) / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic()


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """Append one line in one write, so that lines of several processes do not mix. End an incomplete last line first."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            torn = file.tell() > 0 and not _ends_whole(path)
            file.write((b"\n" if torn else b"") + json.dumps(line).encode() + b"\n")
    except OSError as error:
        raise RorqualError(
            f"cannot write: {error.strerror}",
            where=str(path),
            remedy="Free disk space and repeat the command: it resumes where it stopped.",
        ) from error


def _ends_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read_ledger(path: Path) -> list[LedgerEntry]:
    """Return the cost of each stage so far, in the order the stages began. Incomplete lines are skipped.

    A missing file is an empty ledger.
    """
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
    """Return the sum of `entries` as an entry named `name`. Seconds of parallel processes add up too."""
    return sum(entries, LedgerEntry(name))
