"""Sample a teacher, save each sample on arrival, verify and filter the samples, and write them to Parquet with a card."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rorqual.core.config import read_yaml, to_yaml
from rorqual.core.errors import ConfigError, DataError, RorqualError
from rorqual.core.journal import DiskFull, Journal
from rorqual.core.lock import RUN_LOCK, own_run
from rorqual.core.log import Progress
from rorqual.core.records import write_atomic, write_json
from rorqual.data.distilled import Distilled, Ids, Logprobs, VerdictName, write_distilled
from rorqual.factory.budget import reached
from rorqual.factory.card import CardFindings, write_card
from rorqual.factory.config import FactoryConfig
from rorqual.factory.entries import Entry, Place, read_entry, row_of
from rorqual.factory.filters import reasons, said
from rorqual.factory.problems import Chosen, choose
from rorqual.factory.teacher import LocalTeacher, RemoteTeacher, Teacher
from rorqual.tasks.base import Problem
from rorqual.tasks.find import safe_grade

CONFIG, SAMPLES, FAILED, DATA = "factory.yaml", "samples.jsonl", "failed.jsonl", "data.parquet"
CONTAMINATED, CLOCK, FINISHED = "contaminated.jsonl", "clock.json", "finished.json"
TAIL_FLOOR = 1e-7
"""The smallest tail mass of a teacher that objective `distil` assumes."""
CLOCK_SECONDS = 1.0
"""Minimum seconds between two writes of the clock file."""


def sample_teacher(config: FactoryConfig, out: Path, *, threads: int, quiet: bool, api_key: str = "") -> Path:
    """Sample the teacher as `config` says into the folder `out`, and return the Parquet file that `data.distilled` reads.

    Every sample is synced to `samples.jsonl` before it is used. After a kill, a full disk or a failure of server or
    grader, the same call resumes and requests no saved sample again.

    Raises ConfigError, without any change, if the folder holds another config (`access` may differ). Raises
    RorqualError if another process uses the folder. Raises BudgetReached if the budget is reached, after writing the
    file and its card with the samples so far.
    """
    out = Path(out)
    _settle_config(config, out)
    if _is_finished(out):
        return out / DATA
    with own_run(out):
        _settle_config(config, out)
        clock = Clock(out / CLOCK)
        with clock.of("choosing"):
            chosen = choose(config)
            teacher = _teacher(config, out, threads, api_key)
        write_atomic(out / CONFIG, to_yaml(config).encode())
        with Journal(out / SAMPLES, spare=True) as journal, Journal(out / FAILED) as failures:
            work = Work(config, chosen, teacher, journal, failures, clock, quiet)
            with clock.of("sampling"):
                whole = work.sample()
            _finish(work, out, whole)
    return out / DATA


def _finish(work: Work, out: Path, whole: bool) -> None:
    """Write the samples and their card. Raises BudgetReached if samples are missing."""
    config, chosen, teacher, clock = work.config, work.chosen, work.teacher, work.clock
    with clock.of("finishing"):
        rows, met = work.rows()
        if config.top_k:
            rows = with_top(rows, teacher, config.top_k)
        write_distilled(out / DATA, rows, tokenizer=teacher.tokenizer, vocab=teacher.vocab)
        _write_lines(out / CONTAMINATED, [*chosen.listed(), *met])
    left = None if whole else work.total - len(work.have) - len(work.failed)
    notes = [*chosen.notes, *(f"{note[0].upper()}{note[1:]}." for note in work.warnings().values())]
    write_card(out, CardFindings(config, rows, clock.spent, len(chosen.met), notes, teacher.spending, left))
    if not whole:
        raise reached(teacher.spending, len(work.have), work.total, out)
    files = [DATA, CONTAMINATED, "card.html", "card.md"]
    write_json(out / FINISHED, {name: (out / name).stat().st_size for name in files})


class Clock:
    """Wall-clock and processor seconds of each stage, summed over all calls, in a file of its own.

    All other files in the folder are reproducible. The clock is written while samples are saved, so a kill loses the
    time of the current batch only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spent: dict[str, dict[str, float]] = json.loads(path.read_bytes()) if path.is_file() else {}
        self._stage = ""
        self._mark = time.monotonic(), time.process_time()
        self._written = self._mark[0]

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Time the block, also if it raises."""
        self._stage, self._mark = stage, (time.monotonic(), time.process_time())
        try:
            yield
        finally:
            with suppress(RorqualError):  # a full disk is reported by the next write of samples
                self.tick(0.0)

    def tick(self, every: float) -> None:
        """Add the time since the last tick, and write the file if `every` seconds have passed since the last write."""
        now = time.monotonic(), time.process_time()
        had = self.spent.get(self._stage, {"seconds": 0.0, "core_seconds": 0.0})
        self.spent[self._stage] = {
            "seconds": had["seconds"] + now[0] - self._mark[0],
            "core_seconds": had["core_seconds"] + now[1] - self._mark[1],
        }
        self._mark = now
        if now[0] - self._written >= every and (self.path.parent / CONFIG).is_file():
            write_json(self.path, self.spent)
            self._written = now[0]


@dataclass
class Work:
    """The state of a run: samples so far, failures and verdicts."""

    config: FactoryConfig
    chosen: Chosen
    teacher: Teacher
    journal: Journal
    failures: Journal
    clock: Clock
    quiet: bool
    have: dict[Place, Entry] = field(default_factory=dict)
    failed: dict[Place, Entry] = field(default_factory=dict)
    verdicts: dict[Place, VerdictName] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.problems = {problem.key: problem for problem in self.chosen.problems}
        for entry in self._entries(self.journal):
            self.have.setdefault(entry.place, entry)
        self.failed = {entry.place: entry for entry in self._entries(self.failures) if entry.place not in self.have}

    def _entries(self, journal: Journal) -> Iterator[Entry]:
        for number, line in enumerate(journal.lines, start=1):
            where = f"{journal.path}:{number}"
            entry = read_entry(line, where)
            if entry.of != self.teacher.of:
                raise ConfigError(
                    "this sample comes from another teacher or other settings: the teacher's run has changed since",
                    where=where,
                    remedy="Choose another folder (out=), or restore the teacher.",
                )
            if entry.key not in self.problems:
                raise DataError(
                    f"this sample belongs to the problem {entry.key!r:.60}, which the task no longer generates",
                    where=where,
                    remedy="Restore the task's data or its evaluation sets, or choose another folder (out=).",
                )
            yield entry

    @property
    def total(self) -> int:
        """Number of samples in the complete result."""
        return len(self.problems) * self.config.samples

    def sample(self) -> bool:
        """Generate the missing samples and verify all; return False if the budget was reached."""
        bar = Progress(f"distil {self.chosen.task.name}", self.total, unit="sample", start=len(self.have))
        self.verify([*self.have.values(), *self.failed.values()])
        said = set(self.warnings())
        if self.have and len(self.have) < self.total and not self.quiet:
            bar.say(f"distil: resuming with {len(self.have)} of {self.total} samples")

        def keep(entries: Sequence[Entry], kept: Callable[[], None]) -> None:
            full: DiskFull | None = None
            try:
                self.journal.append(entry.line() for entry in entries if not entry.failed)
                self.failures.append(entry.line() for entry in entries if entry.failed)
            except DiskFull as error:  # the reserved space took these entries
                full = error
            kept()
            for entry in entries:
                self.failed.pop(entry.place, None)
                (self.failed if entry.failed else self.have)[entry.place] = entry
            if full is not None:
                raise full
            self.verify(entries)
            self.clock.tick(CLOCK_SECONDS)
            warn()
            show(0)

        def warn() -> None:
            for kind, text in self.warnings().items():
                if kind not in said and not self.quiet:
                    bar.say(f"distil: {text}")
                said.add(kind)

        def show(under_way: int) -> None:
            if not self.quiet:
                bar.update(min(len(self.have) + len(self.failed) + under_way, self.total), self.note())

        try:
            whole = self.teacher.sample(list(self.problems.values()), dict(self.have), keep, show, set(self.failed))
            warn()
            return whole
        except RorqualError as error:
            raise self.told(error) from error

    def told(self, error: RorqualError) -> RorqualError:
        """Return the same error with the number of saved samples added to its remedy."""
        kept = f"{len(self.have)} of {self.total} samples are saved in {self.journal.path}; the same command resumes."
        return type(error)(error.what, where=error.where, remedy=f"{error.remedy} {kept}".strip())

    def note(self) -> str:
        """Return the text beside the progress count: share right, failures and money."""
        judged, spending = list(self.verdicts.values()), self.teacher.spending
        right = f"right {judged.count('right') / len(judged):.0%}" if judged else ""
        failed = f"  failed {len(self.failed)}" * bool(self.failed)
        lost = f"  lost {spending.lost:.4g}" * bool(spending.lost)
        return f"{right}{failed}" + f"  paid {spending.paid:.4g}{lost}" * bool(spending.total)

    def warnings(self) -> dict[str, str]:
        """Return the warnings, by kind; each is shown once in the progress and on the card."""
        found = self.teacher.spending.notes()
        names = Counter(entry.model for entry in self.have.values() if entry.model)
        if names:
            told = ", ".join(f"'{name}' ({count} samples)" for name, count in sorted(names.items()))
            found["model"] = f"the model '{self.config.model}' was requested, but the server reports another: {told}"
        if self.failed:
            first = next(iter(self.failed.values()))
            found["failed"] = (
                f"{len(self.failed)} requests failed, and their samples are ungraded; delete finished.json and repeat the command to"
                f" retry. The first failure, of {first.key!r:.60}: {first.error}"
            )
        return found

    def verify(self, entries: Sequence[Entry]) -> None:
        """Grade the samples with the task's grader; a sample without an answer is ungraded.

        Raises TaskError with the task's name if the grader raises. The samples stay saved.
        """
        for entry in entries:
            graded = None if entry.error else safe_grade(self.chosen.task, self.problems[entry.key], entry.text)
            self.verdicts[entry.place] = graded.value if graded else "ungraded"

    def rows(self) -> tuple[list[Distilled], list[dict[str, Any]]]:
        """Return all samples in the order of the problems, verified and filtered, and the list of contaminated samples."""
        there = self.failed | self.have
        entries = [
            there[place]
            for key in self.problems
            for number in range(self.config.samples)
            if (place := (key, number)) in there
        ]
        rows = [self._row(entry, self.problems[entry.key]) for entry in entries]
        met = [self.chosen.evaluations.holds(said(row)) for row in rows]
        cut_off = [entry.finish == "length" for entry in entries]
        failed = [bool(entry.error) for entry in entries]
        found = reasons(rows, cut_off, [one is not None for one in met], self.config.filters, self.config.keep, failed)
        listed = [
            {"key": row.key, "number": row.number, "met": one.where, "by": one.how, "what": "sample"}
            for row, one, reason in zip(rows, met, found)
            if one is not None and reason == "contaminated"
        ]
        return [replace(row, dropped=reason) for row, reason in zip(rows, found, strict=True)], listed

    def _row(self, entry: Entry, problem: Problem) -> Distilled:
        return row_of(entry, problem, self.verdicts[entry.place], self.config, self.teacher.label, self.teacher.chosen)


def with_top(rows: Sequence[Distilled], teacher: Teacher, k: int) -> list[Distilled]:
    """Return the rows; those that are kept get the teacher's `k` most likely tokens at each position.

    The first `teacher.chosen` tokens were forced, not sampled. Their distribution has all mass on that token.
    """
    kept = [place for place, row in enumerate(rows) if not row.dropped and row.token_ids]
    found = dict(zip(kept, teacher.top([rows[place] for place in kept], k), strict=True))
    made = list(rows)
    for place, (ids, logprobs) in found.items():
        ids, logprobs = ids.copy(), logprobs.copy()
        for forced in range(teacher.chosen):
            ids[forced], logprobs[forced] = certain(rows[place].token_ids[forced], ids[forced])
        made[place] = replace(rows[place], top_ids=ids, top_logprobs=logprobs)
    return made


def certain(token: int, others: Ids) -> tuple[Ids, Logprobs]:
    """Return the distribution with all mass on `token`, over as many ids as `others` [k].

    Every other id has probability `TAIL_FLOOR`, because 0 has no finite logarithm.
    """
    rest = others[others != token][: len(others) - 1]
    logprobs = np.full(len(others), np.log(TAIL_FLOOR), np.float32)
    logprobs[0] = np.log1p(-TAIL_FLOOR * len(others))
    return np.concatenate([[token], rest]).astype(np.int32), logprobs


def _teacher(config: FactoryConfig, out: Path, threads: int, api_key: str) -> Teacher:
    return RemoteTeacher(config, out, api_key) if config.remote else LocalTeacher(config, threads)


def _settle_config(config: FactoryConfig, out: Path) -> None:
    """Raise ConfigError if the folder holds the work of another config, or unrelated files."""
    file = out / CONFIG
    if not file.is_file():
        if out.exists() and (not out.is_dir() or any(path.name != RUN_LOCK for path in out.iterdir())):
            what = "the folder has other files in it" if out.is_dir() else "this is not a folder"
            raise ConfigError(what, where=str(out), remedy="Choose another folder (out=).")
        return
    there = read_yaml(FactoryConfig, file)
    one, other = (c.model_dump(mode="json", exclude={"access"}) for c in (there, config))
    differ = sorted(name for name in one if one[name] != other[name])
    samples = out / SAMPLES
    if differ and samples.is_file() and samples.stat().st_size:
        name = differ[0]
        raise ConfigError(
            f"this folder has samples with {name}={one[name]}, but {name}={other[name]} was requested",
            where=str(file),
            remedy="Choose another folder (out=), or use the same settings to resume.",
        )


def _is_finished(out: Path) -> bool:
    """Return whether an earlier call finished and its files are unchanged."""
    try:
        sizes = json.loads((out / FINISHED).read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return all((out / name).is_file() and (out / name).stat().st_size == size for name, size in sizes.items())


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    write_atomic(
        path, b"".join(json.dumps(line, ensure_ascii=False, sort_keys=True).encode() + b"\n" for line in lines)
    )
