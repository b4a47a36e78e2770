"""Sample a teacher, keep what comes the moment it is there, verify it, filter it, and write it down with a card."""

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
from rorqual.distil.card import CardFindings, write_card
from rorqual.distil.config import FactoryConfig
from rorqual.distil.entries import Entry, Place, read_entry, row_of
from rorqual.distil.filters import reasons, said
from rorqual.distil.problems import Chosen, choose
from rorqual.distil.purse import reached
from rorqual.distil.teacher import LocalTeacher, RemoteTeacher, Teacher
from rorqual.tasks.base import Problem
from rorqual.tasks.find import safe_grade

CONFIG, SAMPLES, FAILED, DATA = "factory.yaml", "samples.jsonl", "failed.jsonl", "data.parquet"
CONTAMINATED, CLOCK, FINISHED = "contaminated.jsonl", "clock.json", "finished.json"
TAIL_FLOOR = 1e-7
"""What objective distil takes for the least mass of a teacher's tail."""
CLOCK_SECONDS = 1.0
"""How often the clock is written, at most."""


def sample_teacher(config: FactoryConfig, out: Path, *, threads: int, quiet: bool, api_key: str = "") -> Path:
    """Sample the teacher as `config` says, into the folder `out`; the Parquet file that `data.distilled` reads.

    Every sample is on the disk, in `samples.jsonl`, before anything else is done with it, so that the same call goes on where it
    was after a kill, a full disk, a failure of the server or of the grader, and asks for nothing twice that is there. A call for a folder
    that holds another config (but for `access`), or in which another process works, is refused and changes nothing; a budget that is
    reached is a `BudgetReached`, after the file and its card have been written with what is there.
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
    """Write what is there, with its card; a `BudgetReached` where something is missing."""
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
    """Wall-clock and processor seconds of each stage, over all calls, in a file: all else in the folder is the same every time.

    It is written as samples are kept, so that a kill loses what its batch had taken and no more.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spent: dict[str, dict[str, float]] = json.loads(path.read_bytes()) if path.is_file() else {}
        self._stage = ""
        self._mark = time.monotonic(), time.process_time()
        self._written = self._mark[0]

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Time what is inside, also where it raises."""
        self._stage, self._mark = stage, (time.monotonic(), time.process_time())
        try:
            yield
        finally:
            with suppress(RorqualError):  # a full disk: whoever writes what matters will say so
                self.tick(0.0)

    def tick(self, every: float) -> None:
        """Count what passed since the last tick, and write it down where `every` seconds have passed."""
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
    """What is there so far, and what is known of it."""

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
                    "this sample is of another teacher or other settings: the run has been trained on since, or changed",
                    where=where,
                    remedy="Choose another folder (out=), or restore the teacher as it was.",
                )
            if entry.key not in self.problems:
                raise DataError(
                    f"a sample of the problem {entry.key!r:.60}, which the task does not give any more",
                    where=where,
                    remedy="Restore the task's data or its evaluation sets, or choose another folder (out=).",
                )
            yield entry

    @property
    def total(self) -> int:
        """Samples that there will be."""
        return len(self.problems) * self.config.samples

    def sample(self) -> bool:
        """Ask for what is not there, and verify everything; False where the budget was reached."""
        bar = Progress(f"distil {self.chosen.task.name}", self.total, unit="sample", start=len(self.have))
        self.verify([*self.have.values(), *self.failed.values()])
        said = set(self.warnings())
        if self.have and len(self.have) < self.total and not self.quiet:
            bar.say(f"distil: {len(self.have)} of {self.total} samples are here already")

        def keep(entries: Sequence[Entry], kept: Callable[[], None]) -> None:
            full: DiskFull | None = None
            try:
                self.journal.append(entry.line() for entry in entries if not entry.failed)
                self.failures.append(entry.line() for entry in entries if entry.failed)
            except DiskFull as error:  # these are kept all the same
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
        """The same error, which says too what is kept."""
        kept = f"{len(self.have)} of {self.total} samples are kept in {self.journal.path}; the same command goes on."
        return type(error)(error.what, where=error.where, remedy=f"{error.remedy} {kept}".strip())

    def note(self) -> str:
        """What is worth seeing beside the count."""
        judged, spending = list(self.verdicts.values()), self.teacher.spending
        right = f"right {judged.count('right') / len(judged):.0%}" if judged else ""
        failed = f"  failed {len(self.failed)}" * bool(self.failed)
        lost = f"  lost {spending.lost:.4g}" * bool(spending.lost)
        return f"{right}{failed}" + f"  paid {spending.paid:.4g}{lost}" * bool(spending.total)

    def warnings(self) -> dict[str, str]:
        """What must be said once, in the progress and on the card, by its kind."""
        found = self.teacher.spending.notes()
        names = Counter(entry.model for entry in self.have.values() if entry.model)
        if names:
            told = ", ".join(f"'{name}' ({count} samples)" for name, count in sorted(names.items()))
            found["model"] = (
                f"the model '{self.config.model}' was asked for, and the server says that another answered: {told}"
            )
        if self.failed:
            first = next(iter(self.failed.values()))
            found["failed"] = (
                f"{len(self.failed)} requests failed, their samples are ungraded, and a further call without finished.json asks again;"
                f" the first, of {first.key!r:.60}: {first.error}"
            )
        return found

    def verify(self, entries: Sequence[Entry]) -> None:
        """Have the task's grader judge them; what is no answer is ungraded.

        What the grader raises is a `TaskError` with the task's name, and the samples are kept.
        """
        for entry in entries:
            graded = None if entry.error else safe_grade(self.chosen.task, self.problems[entry.key], entry.text)
            self.verdicts[entry.place] = graded.value if graded else "ungraded"

    def rows(self) -> tuple[list[Distilled], list[dict[str, Any]]]:
        """All samples in the order of the problems, verified and filtered; and those that hold words of an evaluation set."""
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
    """The rows, and beside those that are kept the teacher's `k` likeliest tokens at each place.

    The first `teacher.chosen` tokens were forced, not drawn: there its policy was that token alone.
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
    """The distribution that is `token` alone, over as many ids as `others` [k]: each other has `TAIL_FLOOR`, as 0 has no finite logarithm."""
    rest = others[others != token][: len(others) - 1]
    logprobs = np.full(len(others), np.log(TAIL_FLOOR), np.float32)
    logprobs[0] = np.log1p(-TAIL_FLOOR * len(others))
    return np.concatenate([[token], rest]).astype(np.int32), logprobs


def _teacher(config: FactoryConfig, out: Path, threads: int, api_key: str) -> Teacher:
    return RemoteTeacher(config, out, api_key) if config.remote else LocalTeacher(config, threads)


def _settle_config(config: FactoryConfig, out: Path) -> None:
    """Refuse a folder that holds the work of another config."""
    file = out / CONFIG
    if not file.is_file():
        if out.exists() and (not out.is_dir() or any(path.name != RUN_LOCK for path in out.iterdir())):
            what = "a folder with other things in it" if out.is_dir() else "not a folder"
            raise ConfigError(what, where=str(out), remedy="Choose another folder (out=).")
        return
    there = read_yaml(FactoryConfig, file)
    one, other = (c.model_dump(mode="json", exclude={"access"}) for c in (there, config))
    differ = sorted(name for name in one if one[name] != other[name])
    samples = out / SAMPLES
    if differ and samples.is_file() and samples.stat().st_size:
        name = differ[0]
        raise ConfigError(
            f"this folder holds samples with {name}={one[name]}, and {name}={other[name]} was asked for",
            where=str(file),
            remedy="Choose another folder (out=), or repeat the settings: they go on where they were.",
        )


def _is_finished(out: Path) -> bool:
    """Whether an earlier call came to its end, and its files are as it left them."""
    try:
        sizes = json.loads((out / FINISHED).read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return all((out / name).is_file() and (out / name).stat().st_size == size for name, size in sizes.items())


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    write_atomic(
        path, b"".join(json.dumps(line, ensure_ascii=False, sort_keys=True).encode() + b"\n" for line in lines)
    )
