"""The process of one fine-tuning job: `python -m rorqual.fine_tuning.job_process FOLDER THREADS MEMORY`.

The process trains epoch by epoch, and resumes where an earlier process of the job was killed, with the same weights. It ends at
once if its standard input is closed, because then the server is gone.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rorqual.core.config import parse_config
from rorqual.core.errors import DataError, RorqualError
from rorqual.core.journal import append_line
from rorqual.core.lock import Lock, acquire_lock
from rorqual.core.records import MANIFEST_FILE, RunDir, write_atomic, write_json
from rorqual.fine_tuning.recipe import JobPlan, plan_job
from rorqual.fine_tuning.report import write_report
from rorqual.fine_tuning.store import DISK_FULL, OUT_OF_MEMORY, PAUSED, SERVER_GONE, JobError, JobFolder, Outcome
from rorqual.fine_tuning.validation import validation_metrics
from rorqual.model.adapter.chain import joined_adapter
from rorqual.train.checkpoint import OPTIM_FILE
from rorqual.train.loop import fit

Train = Callable[[JobFolder, int, Callable[[], bool]], Outcome | None]
"""A function of a job's folder, the number of threads and whether to stop. It returns the end, or None if it was stopped."""
KEPT_MODELS = 3
"""The models of the last `KEPT_MODELS` checkpoints are kept: after epochs, as in OpenAI's API, and at pauses."""
CSV_FIELDS = ("step", "train_loss", "valid_loss", "valid_mean_token_accuracy")
"""The columns of OpenAI's result file but `train_accuracy`, which the training loop does not measure."""
MORE_METRICS = {"reward", "rewards/accuracies"}
"""Metrics of reinforcement and of DPO that an event and the result file have beside the loss."""
NOTHING_LEARNT = (
    "The samples of each prompt scored the same, so nothing was learnt. Train with 'supervised' first, or use a grader with partial "
    "scores."
)
PROCESSES_FILE = "processes.jsonl"
"""A file of the job's folder, for the operator: a line for each process that began to train the job, with its server."""
LOCK_SECONDS = 30.0
"""Seconds that the process waits for an earlier process of the job to end."""


def main(path: Path, threads: int, memory: int, train: Train, *, can_always_stop: bool = False) -> int:
    """Train the job in `path` by the function `train`, and return the exit status.

    `memory`: maximum bytes of the process; 0: no limit. `can_always_stop`: whether the process may end at any moment, because
    `train` keeps what it has found; otherwise `train` asks whether it is stopped.
    """
    folder, stopping = JobFolder(path), threading.Event()
    if folder.outcome_file.is_file():  # the server was killed before it recorded the end
        return 0
    lock = _wait_for_lock(path)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(PAUSED) if can_always_stop else stopping.set())
    threading.Thread(target=_watch_server, daemon=True).start()
    threading.Thread(target=_watch_memory, args=(memory,), daemon=True).start()
    try:
        line = {"process": os.getpid(), "server": os.getppid(), "began": time.time()}
        append_line(path / PROCESSES_FILE, line)
        outcome = train(folder, threads, stopping.is_set)
        if outcome is None:
            return PAUSED
        write_json(folder.outcome_file, outcome.model_dump(mode="json"))
    except (RorqualError, OSError) as error:
        if is_disk_full(error):
            return DISK_FULL
        if isinstance(error, OSError):
            raise
        write_json(folder.outcome_file, Outcome(error=job_error(error, folder)).model_dump(mode="json"))
    finally:
        lock.close()
    return 0


def job_error(error: RorqualError, folder: JobFolder) -> JobError:
    """Return the error of a job, with the parameter that is to blame."""
    if not isinstance(error, DataError):
        return JobError(code="training_failed", message=str(error))
    param = "validation_file" if str(folder.validation_data) in str(error) else "training_file"
    problem = f"`{param}` is not valid for the method '{folder.job().method.type}': {error}"
    return JobError(code=f"invalid_{param}", message=problem, param=param)


def _wait_for_lock(path: Path) -> Lock:
    """Return the lock of the job's folder, as soon as an earlier process of the job has ended."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return acquire_lock(path / "process", "Wait until the job's process has ended.")
        except RorqualError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether a full disk caused the error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__
    return False


def _watch_server() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock would stop the interpreter's end
        pass
    os._exit(SERVER_GONE)


def _watch_memory(limit: int) -> None:
    while limit:
        if _memory_bytes() > limit:
            os._exit(OUT_OF_MEMORY)
        time.sleep(0.5)


def _memory_bytes() -> int:
    """Return the memory of this process: at present on Linux, where a new process inherits the server's peak, else at most."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def train_job(folder: JobFolder, threads: int, is_stopped: Callable[[], bool]) -> Outcome | None:
    """Train a job to its end and keep the models of the last epochs. Return None if `is_stopped` became true before the end.

    Raises DataError if a file of the job is invalid.
    """
    job = folder.job()
    if not folder.plan_file.is_file():
        write_json(folder.plan_file, plan_job(job, folder).model_dump(mode="json"))
    plan = parse_config(JobPlan, json.loads(folder.plan_file.read_bytes()), where=str(folder.plan_file))
    measure = validation_metrics(job, folder, plan.run, threads)
    folder.add_event_once(f"Files validated. Epochs: {len(plan.epoch_ends)}, steps: {plan.run.steps}")
    done = {line["step_number"] for line in folder.checkpoint_lines()}
    if 0 not in done:
        _add_checkpoint(folder, 0, measure(folder.start(job)))
    for end in plan.epoch_ends:
        if end in done:
            continue
        step = _train_to(folder, plan, end, threads, is_stopped)
        if step < end and not folder.job().is_paused:
            return None
        copy_model(folder.run, folder.model(step), joined=job.depth > 0)
        _add_checkpoint(folder, step, {"train_loss": _last_loss(folder.run), **measure(folder.run)})
        kept = [folder.model(int(one)).path for one in folder.kept_steps()[-KEPT_MODELS:]]
        for old in {*folder.models.iterdir()}.difference(kept):  # also what a killed process left
            shutil.rmtree(old, ignore_errors=True)
        if step < end:
            return None
    trained_tokens = sum(int(record["tokens"]) for record in folder.run.metrics())
    if not trained_tokens:
        folder.add_event_once(NOTHING_LEARNT, "warn")
    write_atomic(folder.results_file, results_csv(folder))
    write_report(job, folder, epochs=len(plan.epoch_ends))
    return Outcome(trained_tokens=trained_tokens)


def _train_to(folder: JobFolder, plan: JobPlan, end: int, threads: int, is_stopped: Callable[[], bool]) -> int:
    """Train up to step `end`, and return the step that was reached. A step that was repeated after a kill gets no second event."""
    reached = folder.run.newest_complete_step()[0] or 0
    if reached >= end:
        return end
    seen = max((event["data"].get("step", 0) for event in folder.events()), default=0)

    def observe(record: dict[str, Any]) -> None:
        nonlocal reached
        reached = record["step"]
        if reached > seen:
            data = {"step": reached, "total_steps": plan.run.steps, "train_loss": record["loss"]}
            words = f"training loss={record['loss']:.2f}"
            for name in MORE_METRICS & record.keys():
                data[name], words = record[name], f"{words}, {name.rpartition('/')[2]}={record[name]:.3g}"
            folder.add_event("info", f"Step {reached}/{plan.run.steps}: {words}", data)

    fit(
        plan.run,
        folder.run,
        threads=threads,
        quiet=True,
        observe=observe,
        stop=lambda step: step >= end or is_stopped(),
    )
    return reached


def _add_checkpoint(folder: JobFolder, step: int, metrics: dict[str, float]) -> None:
    """Record the metrics of the model after `step`, also in an event. Step 0 is the base model, if there is a validation file."""
    folder.add_checkpoint(step, {"step": step, **metrics})
    if metrics:
        shown = ", ".join(f"{name}={value:.3f}" for name, value in metrics.items())
        folder.add_event_once(f"{f'Checkpoint of step {step}' if step else 'Before training'}: {shown}")


def _last_loss(run: RunDir) -> float:
    return float([record["loss"] for record in run.metrics()][-1])


def copy_model(src: RunDir, dst: RunDir, *, joined: bool = False) -> None:
    """Copy a run's settings, tokenizer and newest checkpoint, without the optimizer's state. `dst` is complete or missing.

    `joined`: the run's base is an adapter, too, and the copy is one adapter of the complete base model.
    """
    step, temporary = src.checkpoint(), dst.path.with_name(f".{dst.path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    files = [file for file in step.iterdir() if file.name not in (OPTIM_FILE, MANIFEST_FILE)]
    (temporary / step.name).mkdir(parents=True)
    for file in (src.config_file, src.tokenizer_file, *files):
        shutil.copy2(file, temporary / file.relative_to(src.path))
    for name, content in joined_adapter(step).items() if joined else ():
        (temporary / step.name / name).write_bytes(content)
    copied = {file.name: file.stat().st_size for file in (temporary / step.name).iterdir()}
    write_json(temporary / step.name / MANIFEST_FILE, copied)
    shutil.rmtree(dst.path, ignore_errors=True)
    os.replace(temporary, dst.path)


def results_csv(folder: JobFolder) -> bytes:
    """Return the result file: a CSV table with a row for each step. The validation columns are filled at checkpoints."""
    measured = {line["step_number"]: line["metrics"] for line in folder.checkpoint_lines()}
    text = io.StringIO()
    steps = [*folder.run.metrics()]
    own = sorted({name for record in steps for name in MORE_METRICS & record.keys()})
    valid = {name.removeprefix("full_") for metrics in measured.values() for name in metrics if name[:5] == "full_"}
    more = [*own, *sorted(valid.difference(CSV_FIELDS))] if own else []  # supervised jobs have OpenAI's columns alone
    table = csv.DictWriter(text, [*CSV_FIELDS, *more], lineterminator="\n", extrasaction="ignore")
    table.writeheader()
    for record in steps:
        metrics = {name.removeprefix("full_"): value for name, value in measured.get(record["step"], {}).items()}
        row = {"step": record["step"], "train_loss": record["loss"]}
        table.writerow(row | {name: record[name] for name in own} | metrics)
    return text.getvalue().encode()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), train_job))
