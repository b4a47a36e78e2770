"""The cost ledger: the tokens, FLOPs, core-seconds, seconds and money that each stage of a job used.

The ledger is an append-only file of JSON lines. Each line holds the resources that a stage used since the stage's previous
line. The cost of a stage is the sum of its lines. If a stage was killed and repeated, the cost of the stage therefore
includes both attempts. Several processes may append to the same ledger. A running stage writes a line every `BEAT` seconds,
so a kill loses at most the last `BEAT` seconds. Time between stages is counted as `unaccounted`, so the seconds of all ledger
entries add up to the wall-clock time of the job.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rorqual.core.errors import RorqualError
from rorqual.core.journal import append_line, read_lines

UNACCOUNTED = "unaccounted"
"""Name of the ledger entry that collects the time outside all stages, such as the time of start-up and imports."""
CORE_HOUR = 0.05
"""Default price of one core-hour in USD, close to the prices of cloud providers."""
BEAT = 2.0
"""Seconds between two ledger lines of a running stage."""


@dataclass
class LedgerEntry:
    """The resources that a stage used.

    `Ledger` measures the wall-clock time (`seconds`) and the CPU time (`core_seconds`). The CPU time includes that of child
    processes for which this process has waited. The caller adds the processed tokens and FLOPs (`tokens`, `flops`), the
    number of solved problems (`solved`), and the USD paid to remote providers (`paid`).
    """

    stage: str
    tokens: int = 0
    flops: int = 0
    solved: int = 0
    paid: float = 0.0
    seconds: float = 0.0
    core_seconds: float = 0.0

    def add(self, record: Mapping[str, Any]) -> None:
        """Add the metrics record of one training step: trained tokens, sampled tokens, FLOPs and correct samples are added to
        this entry."""
        self.tokens += int(record["tokens"]) + int(record.get("sampled_tokens", 0))
        self.flops += int(record["flops"])
        self.solved += int(record.get("right", 0))

    def cost_usd(self, core_hour: float = CORE_HOUR) -> float:
        """Return the cost in USD: the core-seconds at `core_hour` USD per core-hour, plus `paid`."""
        return self.core_seconds / 3600 * core_hour + self.paid

    def __add__(self, other: LedgerEntry) -> LedgerEntry:
        return LedgerEntry(self.stage, *(getattr(self, name) + getattr(other, name) for name in AMOUNTS))


AMOUNTS = tuple(field.name for field in fields(LedgerEntry) if field.name != "stage")


class Ledger:
    """Writer of the ledger file `path` for one process. Use `with ledger.record_stage("stage") as entry: ...` for each stage,
    then call `close`.

    With `whole_process`, the time before this object was created (start of Python, imports) counts as unaccounted. The ledger
    file is written only if a stage was opened. Stages may be nested. Elapsed time counts only for the innermost open stage.
    `every` is the number of seconds between two lines of a running stage.
    """

    def __init__(self, path: Path, *, whole_process: bool = False, every: float = BEAT) -> None:
        self.path, self.every = path, every
        self._open = [LedgerEntry(UNACCOUNTED)]
        self._written: dict[int, LedgerEntry] = {}
        self._lock = threading.RLock()
        self._mark = (process_start_time(), 0.0) if whole_process else (time.monotonic(), cpu_seconds())
        self._used = False

    @contextmanager
    def record_stage(self, stage: str) -> Iterator[LedgerEntry]:
        """Count the time of the `with` body as part of `stage`, even if the body raises. Yields the `LedgerEntry` of this `with` body."""
        entry = LedgerEntry(stage)
        with self._lock:
            self._count_elapsed_time()
            self._used = True
            self._open.append(entry)
        ended = threading.Event()
        writer = threading.Thread(target=self._write_periodically, args=(ended,), daemon=True)
        writer.start()
        try:
            yield entry
        except BaseException:
            with suppress(RorqualError):  # report the exception of the `with` body, not a ledger error
                self._end_stage(entry, ended, writer)
            raise
        self._end_stage(entry, ended, writer)

    def _end_stage(self, entry: LedgerEntry, ended: threading.Event, writer: threading.Thread) -> None:
        """Close a stage and write the resources that the stage used since the stage's last ledger line."""
        ended.set()
        writer.join()
        with self._lock:
            self._count_elapsed_time()
            self._open.remove(entry)
            self._write(self._open[0])
            self._write(entry)
            self._written.pop(id(entry), None)

    def close(self) -> None:
        """Write the unaccounted time since the last stage. Calls after the first write nothing."""
        with self._lock:
            self._count_elapsed_time()
            if self._used:
                self._write(self._open[0])

    def _write_periodically(self, ended: threading.Event) -> None:
        """Write a ledger line for each open stage every `every` seconds, until `ended` is set."""
        while not ended.wait(self.every):
            with self._lock, suppress(RorqualError):  # a full disk is reported when the stage ends
                self._count_elapsed_time()
                for entry in list(self._open):
                    self._write(entry)

    def _count_elapsed_time(self) -> None:
        """Add the time since the last count to the innermost open stage."""
        now = (time.monotonic(), cpu_seconds())
        entry = self._open[-1]
        entry.seconds += now[0] - self._mark[0]
        entry.core_seconds += now[1] - self._mark[1]
        self._mark = now

    def _write(self, entry: LedgerEntry) -> None:
        """Append a ledger line with the resources that the stage of `entry` used since the stage's last line."""
        written = self._written.get(id(entry), LedgerEntry(entry.stage))
        now = LedgerEntry(entry.stage, *(getattr(entry, name) for name in AMOUNTS))
        line = {name: getattr(now, name) - getattr(written, name) for name in AMOUNTS}
        line = {name: value for name, value in line.items() if value}
        if line:
            append_line(self.path, {"stage": entry.stage} | line)
            self._written[id(entry)] = now


def cpu_seconds() -> float:
    """Return the CPU seconds of all threads of this process, and of the child processes that this process has waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def process_start_time() -> float:
    """Return the start time of this process on the clock of `time.monotonic`, or the current time if the start time is unknown."""
    try:
        fields_after_name = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        since_boot = int(fields_after_name[19]) / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic()


def read_ledger(path: Path) -> list[LedgerEntry]:
    """Return one entry per stage, in the order of the stages' first lines. Incomplete lines are skipped.

    Returns an empty list if the ledger file does not exist.
    """
    stages: dict[str, LedgerEntry] = {}
    for line in read_lines(path):
        if "stage" in line:
            entry = LedgerEntry(str(line["stage"]), **{name: line.get(name, 0) for name in AMOUNTS})
            stages[entry.stage] = stages.get(entry.stage, LedgerEntry(entry.stage)) + entry
    return list(stages.values())


def sum_entries(entries: Iterable[LedgerEntry], name: str = "all") -> LedgerEntry:
    """Return the sum of `entries` as an entry named `name`. The seconds of parallel processes are added, so the sum may
    exceed the elapsed time."""
    return sum(entries, LedgerEntry(name))
