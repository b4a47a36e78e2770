"""The folder of the fine-tuning API: uploaded files, and jobs with their models.

    files/file-ID/    file.json, content.jsonl
    jobs/ftjob-ID/    job.json, train.jsonl, validation.jsonl, events.jsonl, run/, models/step-000120/, outcome.json

Only the server writes `file.json` and `job.json`. A job has hard links of its files, so a file can be deleted at any time.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import string
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from rorqual.core.config import Bytes, Config, Natural, Seed, parse_config
from rorqual.core.journal import append_line, read_lines
from rorqual.core.records import RunDir, write_json
from rorqual.fine_tuning.schemas import Hyperparameters, Method

DISK_FULL, PAUSED, OUT_OF_MEMORY, SERVER_GONE = 28, 75, 76, 77
"""Exit statuses of a job's process, from which the server learns why the process ended without an outcome."""
LADDER = "ladder"
"""The name of the base model of a job without a language model."""
CHECKPOINT = ":ckpt-step-"
"""Between the name of a tuned model and the step of one of its checkpoints."""
LETTERS = string.ascii_letters + string.digits
FINISHED = frozenset({"succeeded", "failed", "cancelled"})
Level = Literal["info", "warn", "error"]
Seconds = Bytes
"""A Unix time in whole seconds."""


def new_id(prefix: str) -> str:
    """Return a new id, such as `file-...`. After the hyphen, 14 characters are the time, by which ids sort, and 12 are random."""
    return f"{prefix}-{time.time_ns() >> 10:014x}{''.join(secrets.choice(LETTERS) for _ in range(12))}"


class StoredFile(Config):
    """An uploaded file, or the result file of a job. `expires_at`: when the server deletes the file, or None for never."""

    id: str
    tenant: str
    filename: str
    bytes: Bytes
    created_at: Seconds
    expires_at: Seconds | None = None
    purpose: Literal["fine-tune", "fine-tune-results"] = "fine-tune"

    def shown(self) -> dict[str, Any]:
        """Return the file as OpenAI's API shows it."""
        return {**self.model_dump(exclude={"tenant"}), "object": "file", "status": "processed"}


class JobError(Config):
    """Why a job failed. `param`: the parameter that is to blame, if any."""

    code: str
    message: str
    param: str | None = None


class Outcome(Config):
    """The end of a job's training, which the job's process writes last."""

    error: JobError | None = None
    trained_tokens: Natural = 0


class Job(Config):
    """A fine-tuning job. Times are Unix times in seconds.

    - `base`: folder of the run that the server serves, or "" for the ladder of `rorqual teach` without a language model. `model`: the name
      of the base in the request.
    - `depth`: how many tuned models the base was trained from, one after another. `JobFolder.start` is the last.
    - `is_paused`: whether the client paused the job. OpenAI's API has no such status, so a paused job is shown as queued.
    - `is_deleted`: whether the client deleted the tuned model.
    """

    id: str
    tenant: str
    created_at: Seconds
    model: str
    base: str
    method: Method
    training_file: str
    validation_file: str | None = None
    seed: Seed
    suffix: str = ""
    depth: Natural = 0
    metadata: dict[str, str] | None = None
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"] = "queued"
    is_paused: bool = False
    is_deleted: bool = False
    started_at: Seconds | None = None
    finished_at: Seconds | None = None
    error: JobError | None = None
    trained_tokens: Natural | None = None
    result_files: tuple[str, ...] = ()

    @property
    def is_finished(self) -> bool:
        """Whether the job has ended, with or without success."""
        return self.status in FINISHED

    @property
    def model_name(self) -> str:
        """The name of the tuned model: `ft:BASE:TENANT:SUFFIX:ID`. `BASE` is the first base's name."""
        base = self.model.partition(CHECKPOINT)[0][3:].rsplit(":", 3)[0] if self.depth else self.model
        return f"ft:{base}:{self.tenant}:{self.suffix}:{self.id[-8:]}"

    @property
    def has_model(self) -> bool:
        """Whether the tuned model can be asked."""
        return self.status == "succeeded" and not self.is_deleted

    def shown(self, estimated_finish: int | None, used: Mapping[str, Any]) -> dict[str, Any]:
        """Return the job as OpenAI's API shows it. `used`: the values of hyperparameters, as far as they are known."""
        same = {"id", "created_at", "model", "training_file", "validation_file", "seed", "metadata", "status"}
        more = {"finished_at", "trained_tokens", "result_files", "error"}
        known = self.method.hyperparameters.model_copy(update=dict(used))
        method = self.method.model_dump(mode="json", exclude_none=True)
        method[self.method.type] = {**method.get(self.method.type, {}), "hyperparameters": known.model_dump()}
        return {
            **self.model_dump(mode="json", include=same | more),
            "object": "fine_tuning.job",
            "organization_id": self.tenant,
            "fine_tuned_model": self.model_name if self.status == "succeeded" else None,
            "hyperparameters": known.model_dump(include={*Hyperparameters.model_fields}),
            "method": method,
            "estimated_finish": estimated_finish,
            "integrations": [],
        }


@dataclass(frozen=True)
class JobFolder:
    """The folder of a job, which the server and the job's process share."""

    path: Path

    @property
    def training_data(self) -> Path:
        return self.path / "train.jsonl"

    @property
    def validation_data(self) -> Path:
        return self.path / "validation.jsonl"

    @property
    def run(self) -> RunDir:
        return RunDir(self.path / "run")

    @property
    def base(self) -> Path:
        """The run that is tuned, if that is a tuned model: links of its files, because its user can delete it at any time."""
        return self.path / "base"

    @property
    def outcome_file(self) -> Path:
        return self.path / "outcome.json"

    @property
    def results_file(self) -> Path:
        return self.path / "step_metrics.csv"

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def taught(self) -> Path:
        """The folder of `rorqual teach`, if the job has no base model."""
        return self.path / "taught"

    def start(self, job: Job) -> RunDir:
        """Return the run from which the training of the folder's job starts."""
        return RunDir(self.base if job.depth else Path(job.base))

    def model(self, step: int) -> RunDir:
        """Return the folder of the model after `step`: a run with one checkpoint."""
        return RunDir(self.models / f"{step:06d}")

    def job(self) -> Job:
        """Read the job. Raises ConfigError if the file is invalid."""
        file = self.path / "job.json"
        return parse_config(Job, json.loads(file.read_bytes()), where=str(file))

    def delete_training_files(self) -> None:
        """Delete what only training needs: the links of the user's files, the run, and the results, which are stored files now.

        A server does so for each finished job also when it starts, because an earlier server may have been killed before.
        """
        for file in (self.training_data, self.validation_data, self.results_file, self.report_file):
            file.unlink(missing_ok=True)
        for folder in (self.run.path, self.base):
            shutil.rmtree(folder, ignore_errors=True)

    def used_hyperparameters(self) -> dict[str, Any]:
        """Return the values of hyperparameters, which are known as soon as the job's process has planned the training."""
        return json.loads(self.plan_file.read_bytes()).get("hyperparameters", {}) if self.plan_file.is_file() else {}

    def save(self, job: Job) -> None:
        """Write the job. Raises RorqualError if the file cannot be written."""
        write_json(self.path / "job.json", job.model_dump(mode="json"))

    def outcome(self) -> Outcome | None:
        """Return the end of the training, or None if the training has not ended."""
        if not self.outcome_file.is_file():
            return None
        return parse_config(Outcome, json.loads(self.outcome_file.read_bytes()), where=str(self.outcome_file))

    def add_event(self, level: Level, message: str, data: Mapping[str, Any] | None = None) -> None:
        """Append an event. An event with `data` has the type `metrics`."""
        kind = "message" if data is None else "metrics"
        event = {"id": new_id("ftevent"), "created_at": int(time.time()), "level": level, "message": message}
        line = {**event, "object": "fine_tuning.job.event", "type": kind, "data": dict(data or {})}
        append_line(self.path / "events.jsonl", line)

    def add_event_once(self, message: str, level: Level = "info") -> None:
        """Append an event unless there is one with this message, of an earlier process of the job."""
        if all(event["message"] != message for event in self.events()):
            self.add_event(level, message)

    def events(self) -> list[dict[str, Any]]:
        """Return all events in OpenAI's form, the oldest first."""
        return list(read_lines(self.path / "events.jsonl"))

    def steps(self) -> list[dict[str, Any]]:
        """Return the events of training steps, the oldest first."""
        return [event for event in self.events() if event["type"] == "metrics"]

    def add_checkpoint(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record that the model of `step` is complete, with its metrics by OpenAI's names."""
        line = {"id": new_id("ftckpt"), "created_at": int(time.time()), "step_number": step, "metrics": dict(metrics)}
        append_line(self.path / "checkpoints.jsonl", line)

    def checkpoint_lines(self) -> list[dict[str, Any]]:
        """Return the records of all checkpoints, the oldest first, also of those whose models were deleted."""
        return list(read_lines(self.path / "checkpoints.jsonl"))

    def kept_steps(self) -> list[str]:
        """Return the steps whose models are kept, the oldest first."""
        return [str(line["step_number"]) for line in self.checkpoints()]

    def checkpoints(self) -> list[dict[str, Any]]:
        """Return the records of the checkpoints whose models are kept, the oldest first."""
        return [line for line in self.checkpoint_lines() if self.model(line["step_number"]).path.is_dir()]


class TuneStore:
    """All files and jobs of a server's folder. Files and jobs of different tenants never meet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for stale in (*path.glob(".upload-*"), *path.glob(".ftjob-*")):  # of a server that was killed
            stale.unlink()
        for kind in ("file", "job"):
            for folder in path.glob(f"{kind}s/*"):
                if not (folder / f"{kind}.json").is_file():  # half written, or half deleted
                    shutil.rmtree(folder, ignore_errors=True)
        self.files = {one.id: one for one in self._load_files()}
        self.jobs = {one.id: one for one in self._load_jobs()}
        for job in self.jobs.values():
            if job.is_finished:
                self.folder(job.id).delete_training_files()

    def _load_files(self) -> Iterator[StoredFile]:
        for file in sorted(self.path.glob("files/*/file.json")):
            yield parse_config(StoredFile, json.loads(file.read_bytes()), where=str(file))

    def _load_jobs(self) -> Iterator[Job]:
        for file in sorted(self.path.glob("jobs/*/job.json")):
            yield JobFolder(file.parent).job()

    def content(self, file_id: str) -> Path:
        """Return the path of a file's content."""
        return self.path / "files" / file_id / "content.jsonl"

    def folder(self, job_id: str) -> JobFolder:
        """Return the folder of a job."""
        return JobFolder(self.path / "jobs" / job_id)

    def file(self, file_id: str, tenant: str) -> StoredFile | None:
        """Return a file of the tenant, or None."""
        found = self.files.get(file_id)
        return found if found is not None and found.tenant == tenant else None

    def job(self, job_id: str, tenant: str) -> Job | None:
        """Return a job of the tenant, or None."""
        found = self.jobs.get(job_id)
        return found if found is not None and found.tenant == tenant else None

    def bytes_of(self, tenant: str) -> int:
        """Return the bytes of a tenant's files, jobs and models on the disk. A job's links of a file count once."""
        sizes: dict[int, int] = {}
        own = [self.content(file.id).parent for file in [*self.files.values()] if file.tenant == tenant]
        own += [self.folder(job.id).path for job in [*self.jobs.values()] if job.tenant == tenant]
        for folder, _, names in chain.from_iterable(map(os.walk, own)):
            for name in names:
                with suppress(FileNotFoundError):  # a job's process has deleted it
                    found = os.lstat(os.path.join(folder, name))
                    sizes[found.st_ino] = found.st_size
        return sum(sizes.values())

    def add_file(
        self, source: Path, tenant: str, filename: str, purpose: str = "fine-tune", seconds: int | None = None
    ) -> StoredFile:
        """Move the file `source` into the store, where it expires after `seconds`. Raises RorqualError if the file cannot be written."""
        now = int(time.time())
        data = {
            "filename": filename,
            "bytes": source.stat().st_size,
            "created_at": now,
            "expires_at": None if seconds is None else now + seconds,
            "purpose": purpose,
        }
        stored = parse_config(StoredFile, {"id": new_id("file"), "tenant": tenant, **data}, where=filename)
        content = self.content(stored.id)
        content.parent.mkdir(parents=True)
        shutil.move(source, content)
        write_json(content.with_name("file.json"), stored.model_dump(mode="json"))
        self.files[stored.id] = stored
        return stored

    def add_results(self, job: Job) -> tuple[str, ...]:
        """Store the result files of a job, and return their ids: the metrics of its steps, encoded in base64 as in OpenAI's API, and
        the report."""
        folder = self.folder(job.id)
        found = [self._add_result(job, file) for file in (folder.results_file, folder.report_file)]
        return tuple(file.id for file in found if file is not None)

    def _add_result(self, job: Job, file: Path) -> StoredFile | None:
        name = f"{job.id}{file.suffix}"
        for known in [*self.files.values()]:  # of a server that was killed before it recorded the end
            if (known.filename, known.tenant, known.purpose) == (name, job.tenant, "fine-tune-results"):
                return known
        if not file.is_file():
            return None
        temporary, content = self.path / f".{name}", file.read_bytes()
        is_table = file.suffix == ".csv"
        temporary.write_bytes(
            base64.b64encode(content) if is_table else self.with_file_names(job, content.decode()).encode()
        )
        return self.add_file(temporary, job.tenant, name, "fine-tune-results")

    def with_file_names(self, job: Job, message: str) -> str:
        """Return a message with the names of the user's files instead of the paths of the server."""
        folder = self.folder(job.id)
        for path, file_id in ((folder.training_data, job.training_file), (folder.validation_data, job.validation_file)):
            known = self.files.get(file_id or "")
            message = message.replace(str(path), known.filename if known is not None else str(file_id))
        return message.replace(f"{self.path}/", "")

    def delete_expired_files(self) -> None:
        """Delete the files whose time is over."""
        for file in [*self.files.values()]:
            if file.expires_at is not None and file.expires_at <= time.time():
                self.delete_file(file.id)

    def delete_file(self, file_id: str) -> None:
        """Delete a file. Jobs keep their links of its content."""
        del self.files[file_id]
        self.content(file_id).with_name("file.json").unlink(
            missing_ok=True
        )  # first, so that a kill leaves no half a file
        shutil.rmtree(self.content(file_id).parent, ignore_errors=True)

    def delete_job(self, job_id: str) -> None:
        """Delete a job that has ended, and its models."""
        del self.jobs[job_id]
        (self.folder(job_id).path / "job.json").unlink(missing_ok=True)  # first, so that a kill leaves no half a job
        shutil.rmtree(self.folder(job_id).path, ignore_errors=True)

    def add_job(self, job: Job, start: Path | None = None) -> None:
        """Create the folder of a job, with links of its files and of the tuned model `start`, if that is its base.

        Raises OSError or RorqualError if the disk is full."""
        folder = self.folder(job.id)
        folder.path.mkdir(parents=True)
        try:
            os.link(self.content(job.training_file), folder.training_data)
            if job.validation_file is not None:
                os.link(self.content(job.validation_file), folder.validation_data)
            if start is not None:
                shutil.copytree(start, folder.base, copy_function=os.link)
            folder.add_event("info", f"Created fine-tuning job: {job.id}")
            folder.save(job)
        except BaseException:
            shutil.rmtree(folder.path, ignore_errors=True)
            raise
        self.jobs[job.id] = job
