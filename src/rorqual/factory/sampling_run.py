"""The main function of the sample factory: sample a teacher, grade and filter the samples, write Parquet and a dataset card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rorqual.core.config import read_yaml, to_yaml
from rorqual.core.errors import ConfigError, DataError, RorqualError
from rorqual.core.journal import Journal, json_line
from rorqual.core.ledger import Ledger, read_ledger
from rorqual.core.lock import RUN_LOCK, acquire_run_lock
from rorqual.core.progress import Progress
from rorqual.core.records import read_json, write_atomic, write_json
from rorqual.data.distilled import Ids, Logprobs, TeacherSample, VerdictName, write_distilled
from rorqual.factory.budget import budget_error
from rorqual.factory.card import CardFindings, write_card
from rorqual.factory.config import FactoryConfig
from rorqual.factory.filters import drop_reasons, reply_text
from rorqual.factory.problems import ChosenProblems, choose_problems
from rorqual.factory.stored_samples import SampleId, StoredSample, is_same_model, parse_sample, prompt_hash, row_of
from rorqual.factory.teacher import LocalTeacher, RemoteTeacher, Teacher, input_hashes
from rorqual.tasks.find import safe_grade
from rorqual.tasks.task import Problem

CONFIG, SAMPLES, FAILED, DATA = "factory.yaml", "samples.jsonl", "failed.jsonl", "data.parquet"
CONTAMINATED, COSTS, FINISHED = "contaminated.jsonl", "costs.jsonl", "finished.json"
TAIL_FLOOR = 1e-7
"""Minimum total probability of all tokens outside the teacher's top k. The objective `distil` assumes this minimum
probability."""


def sample_teacher(config: FactoryConfig, out: Path, *, threads: int, quiet: bool, api_key: str = "") -> Path:
    """Sample from the teacher that `config` names, and write the dataset to the folder `out`. Return the path of the
    Parquet file.

    Every sample is synced to `samples.jsonl` before the sample is graded. If the process is killed, the disk is full,
    or the server or the grader fails, the same call can be repeated. The repeated call resumes without requesting saved
    samples again. `data.distilled` reads the Parquet file.

    If `out` has samples of another config, or if the teacher or an input file has changed since `out` was finished, raises
    ConfigError without changing any file. The setting `access` may differ.
    Raises RorqualError if another process uses the folder. If the budget is reached, raises BudgetReached after writing the
    dataset and its card with the samples so far.
    """
    out = Path(out)
    _check_config(config, out)
    hashes = input_hashes(config)
    if (out / FINISHED).is_file() and (out / DATA).is_file():
        _check_inputs(out / FINISHED, hashes)
        return out / DATA
    with acquire_run_lock(out):
        _check_config(config, out)
        costs = Ledger(out / COSTS)  # writes nothing before the first stage
        chosen = choose_problems(config)
        teacher = RemoteTeacher(config, out, api_key) if config.remote else LocalTeacher(config, threads)
        write_atomic(out / CONFIG, to_yaml(config).encode())
        with Journal(out / SAMPLES) as journal, Journal(out / FAILED) as failures:
            work = FactoryRun(config, chosen, teacher, journal, failures, quiet)
            with costs.record_stage("sampling"):
                completed = work.sample()
            _write_dataset_and_card(work, out, completed, costs)
            write_json(out / FINISHED, {"inputs": hashes})
    return out / DATA


def _write_dataset_and_card(work: FactoryRun, out: Path, completed: bool, costs: Ledger) -> None:
    """Write the dataset and its card. Raises BudgetReached if the budget did not cover all samples."""
    config, chosen, teacher = work.config, work.chosen, work.teacher
    with costs.record_stage("finishing"):
        rows, contaminated = work.rows()
        if config.top_k and isinstance(teacher, LocalTeacher):
            rows = with_top_tokens(rows, teacher, config.top_k)
        write_distilled(out / DATA, rows, tokenizer=teacher.tokenizer, vocab=teacher.vocab)
        lines = (json_line(dict(sorted(line.items()))) for line in (*chosen.contaminated_lines(), *contaminated))
        write_atomic(out / CONTAMINATED, lines)
    n_missing = None if completed else work.total - len(work.have) - len(work.failed)
    notes = [*chosen.notes, *(f"{note[0].upper()}{note[1:]}." for note in work.warnings().values())]
    write_card(
        out, CardFindings(config, rows, read_ledger(out / COSTS), len(chosen.met), notes, teacher.spending, n_missing)
    )
    if not completed:
        raise budget_error(teacher.spending, len(work.have), work.total, out)


@dataclass
class FactoryRun:
    """The state of a factory run: the samples so far (`have`), the failed requests, and the grader's verdicts."""

    config: FactoryConfig
    chosen: ChosenProblems
    teacher: Teacher
    journal: Journal
    failures: Journal
    quiet: bool
    have: dict[SampleId, StoredSample] = field(default_factory=dict)
    failed: dict[SampleId, StoredSample] = field(default_factory=dict)
    verdicts: dict[SampleId, VerdictName] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.problems = {problem.key: problem for problem in self.chosen.problems}
        for entry in self._read_samples(self.journal):
            self.have.setdefault(entry.sample_id, entry)
        self.failed = {
            entry.sample_id: entry for entry in self._read_samples(self.failures) if entry.sample_id not in self.have
        }

    def _read_samples(self, journal: Journal) -> Iterator[StoredSample]:
        for where, _, line in journal.read():
            entry = parse_sample(line, where)
            if entry.of != self.teacher.of:
                raise ConfigError(
                    "this sample comes from another teacher or other settings: the teacher's run was changed after sampling",
                    where=where,
                    remedy="Choose another folder (out=), or restore the teacher.",
                )
            if entry.key not in self.problems:
                raise DataError(
                    f"this sample belongs to the problem {entry.key!r:.60}, which the task no longer generates",
                    where=where,
                    remedy="Restore the task's data or its evaluation sets, or choose another folder (out=).",
                )
            if entry.prompt not in ("", prompt_hash(self.problems[entry.key])):
                raise DataError(
                    f"this sample answers another prompt: the problem {entry.key!r:.60} was changed after sampling",
                    where=where,
                    remedy="Restore the task's prompts, or choose another folder (out=).",
                )
            yield entry

    @property
    def total(self) -> int:
        """The number of samples of the complete dataset."""
        return len(self.problems) * self.config.samples

    def sample(self) -> bool:
        """Generate the missing samples and grade all samples. Return False if the budget was reached."""
        bar = Progress(f"distil {self.chosen.task.name}", self.total, unit="sample", start=len(self.have))
        self.grade_samples([*self.have.values(), *self.failed.values()])
        shown = set(self.warnings())
        for note in () if self.quiet else self.chosen.notes:
            bar.say(f"distil: {note}")
        if self.have and len(self.have) < self.total and not self.quiet:
            bar.say(f"distil: resuming with {len(self.have)} of {self.total} samples")

        def keep(entries: Sequence[StoredSample], on_saved: Callable[[], None]) -> None:
            self.journal.append(asdict(entry) for entry in entries if not entry.failed)
            self.failures.append(asdict(entry) for entry in entries if entry.failed)
            on_saved()
            for entry in entries:
                self.failed.pop(entry.sample_id, None)
                (self.failed if entry.failed else self.have)[entry.sample_id] = entry
            self.grade_samples(entries)
            warn()
            show(0)

        def warn() -> None:
            for kind, text in self.warnings().items():
                if kind not in shown and not self.quiet:
                    bar.say(f"distil: {text}")
                shown.add(kind)

        def show(under_way: int) -> None:
            if not self.quiet:
                bar.update(min(len(self.have) + len(self.failed) + under_way, self.total), self.progress_note())

        try:
            completed = self.teacher.sample(list(self.problems.values()), dict(self.have), keep, show, set(self.failed))
            warn()
            return completed
        except RorqualError as error:
            saved = (
                f"{len(self.have)} of {self.total} samples are saved in {self.journal.path}; the same command resumes."
            )
            raise type(error)(error.what, where=error.where, remedy=f"{error.remedy} {saved}".strip()) from error

    def progress_note(self) -> str:
        """Return the text next to the progress bar: share of right samples, number of failures and money spent."""
        verdicts, spending = list(self.verdicts.values()), self.teacher.spending
        right = f"right {verdicts.count('right') / len(verdicts):.0%}" if verdicts else ""
        failed = f"  failed {len(self.failed)}" * bool(self.failed)
        lost = f"  lost {spending.lost:.4g}" * bool(spending.lost)
        return f"{right}{failed}" + f"  paid {spending.paid:.4g}{lost}" * bool(spending.total)

    def warnings(self) -> dict[str, str]:
        """Return the current warnings by kind. Each kind of warning is shown once during the run, and on the dataset card."""
        texts = self.teacher.spending.warnings_by_kind()
        counts = Counter(entry.model for entry in self.have.values())
        names = counts.keys() - {""}
        if len(names) > 1 or not all(is_same_model(self.config.model, name) for name in names):
            found = ", ".join(f"{name!r} ({counts[name]} samples)" for name in sorted(names))
            said = "another" if len(names) == 1 else "several models"
            texts["model"] = f"the model '{self.config.model}' was requested, but the server reports {said}: {found}"
        if self.failed:
            first = next(iter(self.failed.values()))
            texts["failed"] = (
                f"{len(self.failed)} requests failed, and their samples are ungraded; delete finished.json and repeat the command to"
                f" retry. The first failure, of {first.key!r:.60}: {first.error}"
            )
        return texts

    def grade_samples(self, entries: Sequence[StoredSample]) -> None:
        """Grade samples with the task's grader. A sample without an answer gets the verdict `ungraded`.

        Raises TaskError with the task's name if the grader raises an error. Samples that were saved are not lost if the grader
        raises an error.
        """
        for entry in entries:
            verdict = None if entry.error else safe_grade(self.chosen.task, self.problems[entry.key], entry.text)
            self.verdicts[entry.sample_id] = verdict.value if verdict else "ungraded"

    def rows(self) -> tuple[list[TeacherSample], list[dict[str, Any]]]:
        """Return all samples as graded and filtered rows in the order of the problems, and a list of contaminated samples."""
        samples = self.failed | self.have
        entries = [
            samples[place]
            for key in self.problems
            for number in range(self.config.samples)
            if (place := (key, number)) in samples
        ]
        rows = [self._row(entry, self.problems[entry.key]) for entry in entries]
        matches = [self.chosen.evaluations.match_text(reply_text(row)) for row in rows]
        cut_off = [entry.finish == "length" for entry in entries]
        failed = [bool(entry.error) for entry in entries]
        reasons = drop_reasons(
            rows, cut_off, [match_ is not None for match_ in matches], self.config.filters, self.config.keep, failed
        )
        contaminated = [
            {"key": row.key, "number": row.number, "met": match_.where, "by": match_.how, "what": "sample"}
            for row, match_, reason in zip(rows, matches, reasons)
            if match_ is not None and reason == "contaminated"
        ]
        return [replace(row, dropped=reason) for row, reason in zip(rows, reasons, strict=True)], contaminated

    def _row(self, entry: StoredSample, problem: Problem) -> TeacherSample:
        return row_of(
            entry, problem, self.verdicts[entry.sample_id], self.config, self.teacher.label, self.teacher.chosen
        )


def with_top_tokens(rows: Sequence[TeacherSample], teacher: LocalTeacher, k: int) -> list[TeacherSample]:
    """Add the teacher's `k` most likely tokens at each position to every row that was not dropped.

    The first `teacher.chosen` tokens of a reply were forced, not sampled, so the distribution at each of these
    positions has nearly all probability mass on the forced token.
    """
    indices = [index for index, row in enumerate(rows) if not row.dropped and row.token_ids]
    top = dict(zip(indices, teacher.top_tokens([rows[index] for index in indices], k), strict=True))
    result = list(rows)
    for index, (ids, logprobs) in top.items():
        ids, logprobs = ids.copy(), logprobs.copy()
        for forced in range(teacher.chosen):
            ids[forced], logprobs[forced] = one_token_distribution(rows[index].token_ids[forced], ids[forced])
        result[index] = replace(rows[index], top_ids=ids, top_logprobs=logprobs)
    return result


def one_token_distribution(token: int, others: Ids) -> tuple[Ids, Logprobs]:
    """Return a distribution with nearly all probability mass on `token`, as token ids [k] and log-probabilities [k].
    The k - 1 ids besides `token` come from `others` [k].

    Each id other than `token` has probability `TAIL_FLOOR`, because the logarithm of 0 is not finite.
    """
    other_ids = others[others != token][: len(others) - 1]
    logprobs = np.full(len(others), np.log(TAIL_FLOOR), np.float32)
    logprobs[0] = np.log1p(-TAIL_FLOOR * len(others))
    return np.concatenate([[token], other_ids]).astype(np.int32), logprobs


def _check_config(config: FactoryConfig, out: Path) -> None:
    """Raise ConfigError if the folder contains samples of another config, or unrelated files."""
    file = out / CONFIG
    if not file.is_file():
        if out.exists() and (not out.is_dir() or any(path.name != RUN_LOCK for path in out.iterdir())):
            problem = "the folder has other files in it" if out.is_dir() else "this is not a folder"
            raise ConfigError(problem, where=str(out), remedy="Choose another folder (out=).")
        return
    saved = read_yaml(FactoryConfig, file)
    saved_values, new_values = (c.model_dump(mode="json", exclude={"access"}) for c in (saved, config))
    changed = sorted(name for name in saved_values if saved_values[name] != new_values[name])
    samples = out / SAMPLES
    if changed and samples.is_file() and samples.stat().st_size:
        name = changed[0]
        raise ConfigError(
            f"this folder has samples with {name}={saved_values[name]}, but {name}={new_values[name]} was requested",
            where=str(file),
            remedy="Choose another folder (out=), or use the same settings to resume.",
        )


def _check_inputs(finished: Path, hashes: Mapping[str, str]) -> None:
    """Raise ConfigError if the teacher or an input file has changed since the dataset was finished. Files of earlier versions
    list no inputs."""
    again = "delete finished.json and repeat the command: the stored samples are graded and filtered again."
    saved = read_json(finished, "the list of inputs", f"Choose another folder, or {again}").get("inputs", {})
    if changed := [name for name, digest in hashes.items() if saved.get(name, digest) != digest]:
        raise ConfigError(
            f"this dataset is finished, but since then changed: {', '.join(changed)}",
            where=str(finished),
            remedy=f"Choose another folder (out=). Without a change of the teacher, you can also {again}",
        )
