"""The queue of fine-tuning jobs. Each job runs in a process of its own, and tenants take turns."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from rorqual.core.errors import RorqualError
from rorqual.fine_tuning.store import DISK_FULL, OUT_OF_MEMORY, PAUSED, Job, JobError, Level, Outcome, TuneStore
from rorqual.serve.logs import say

POLL = 1.0
"""Seconds between two looks at the queue."""
ROOM = 256 << 20
"""A job starts only if the disk has at least `ROOM` free bytes."""
TRIES = 3
"""A job whose process dies `TRIES` times without a reason fails."""
RETRY_SECONDS = 30.0
"""Seconds after which a job is tried again whose process found the disk full."""
CHECKPOINT_SECONDS = 20.0
"""Seconds for which a request to pause a job waits until the job has stopped at a checkpoint."""
TURN_SECONDS = 600.0
"""Seconds after which a running job lets the job of a tenant who has none running go first."""
CONTINUED = "Fine-tuning job continues"
PAUSED_MESSAGE = "Fine-tuning job paused"
DISK_MESSAGE = "The job waits, because the disk is full. It is resumed when at least 256 MiB are free."


@dataclass
class JobQueue:
    """Starts the processes of jobs, and records how they end.

    `at_once`: number of jobs that run at the same time. `threads`, `memory`: threads and maximum bytes of a job's process; 0
    bytes: no limit. `tenant_bytes`: a job does not begin if its tenant has more bytes in the store.
    """

    store: TuneStore
    at_once: int = 1
    threads: int = 1
    memory: int = 0
    tenant_bytes: int = 2**63 - 1
    _running: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    _since: dict[str, float] = field(default_factory=dict)
    _ends: set[asyncio.Task[None]] = field(default_factory=set)
    _deaths: Counter[str] = field(default_factory=Counter)
    _turns: dict[str, int] = field(default_factory=dict)
    _unsaved: set[str] = field(default_factory=set)
    _not_before: dict[str, float] = field(default_factory=dict)
    _waiting: set[str] = field(default_factory=set)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Run the jobs until the task is cancelled. The processes then end, and the next server resumes their jobs."""
        for job in list(self.store.jobs.values()):
            if job.status == "running":
                self.update(job, status="queued")
                if job.is_paused:
                    self.note(job, PAUSED_MESSAGE)
        try:
            while True:
                for job_id in list(self._unsaved):
                    self.update(self.store.jobs[job_id])
                try:
                    self.store.delete_expired_files()
                    await self._start_jobs()
                    self._end_turn()
                except OSError as error:  # of memory, files or processes, for now
                    say(f"no job can be started: {error.strerror}")
                # Before Python 3.12, `wait_for` swallows a cancellation that arrives together with the event.
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            for process in self._running.values():
                with suppress(ProcessLookupError):
                    process.kill()
            await asyncio.gather(*self._ends)

    def update(self, job: Job, **changes: Any) -> Job:
        """Change a job, and return it as it is now. If the disk is full, the change is kept in memory and written later."""
        job = self.store.jobs[job.id] = self.store.jobs[job.id].model_copy(update=changes)
        try:
            self.store.folder(job.id).save(job)
            self._unsaved.discard(job.id)
        except RorqualError as error:
            self._unsaved.add(job.id)
            say(f"job {job.id} cannot be saved yet: {error.what}")
        return job

    @property
    def is_busy(self) -> bool:
        """Whether as many jobs run as can run at the same time."""
        return len(self._running) >= self.at_once

    def wake(self) -> None:
        """Look at the queue at once, because a job was added or resumed."""
        self._wake.set()

    def _next_job(self) -> Job | None:
        """Return the job to start: of the tenant with the fewest running jobs, then of the tenant who waited longest."""
        queued = (job for job in self.store.jobs.values() if job.status == "queued" and not job.is_paused)
        waiting = [job for job in queued if self._not_before.get(job.id, 0.0) <= time.monotonic()]
        running = Counter(self.store.jobs[job_id].tenant for job_id in self._running)

        def turn(job: Job) -> tuple[int, int, int, str]:
            return running[job.tenant], self._turns.get(job.tenant, 0), job.created_at, job.id

        return min((job for job in waiting if job.id not in self._running), key=turn, default=None)

    async def _start_jobs(self) -> None:
        while len(self._running) < self.at_once and (job := self._next_job()) is not None:
            if shutil.disk_usage(self.store.path).free < ROOM:
                self._note_full_disk(job)
                return
            if job.started_at is None and (used := self.store.bytes_of(job.tenant)) > self.tenant_bytes:
                problem = f"The files, jobs and models of this tenant have {used:,} bytes, the limit is {self.tenant_bytes:,}."
                remedy = "Delete files or models, and create the job again. The operator can raise tune_bytes=."
                self.finish(job, "failed", JobError(code="storage_full", message=f"{problem} {remedy}"))
            else:
                await self._start(job)

    def _end_turn(self) -> None:
        """If a tenant waits who has no job running, stop the job that has run longest, unless its turn is not over.

        Its process writes a checkpoint, and the job is queued again.
        """
        job, running = self._next_job(), [self.store.jobs[job_id] for job_id in self._running]
        if job is None or not self.is_busy or job.tenant in {one.tenant for one in running}:
            return
        longest = min(self._running, key=self._since.__getitem__)
        if time.monotonic() - self._since[longest] > TURN_SECONDS:
            with suppress(ProcessLookupError):
                self._running[longest].terminate()
            self._since[longest] = math.inf  # told once

    async def _start(self, job: Job) -> None:
        folder = self.store.folder(job.id)
        self._turns[job.tenant] = max(self._turns.values(), default=0) + 1
        module = f"rorqual.fine_tuning.{'job_process' if job.base else 'ladder'}"
        command = (sys.executable, "-m", module, folder.path, self.threads, self.memory)
        # A session of its own keeps a Ctrl-C from the process. The process ends when its standard input is closed.
        with open(folder.log_file, "ab") as log:
            process = await asyncio.create_subprocess_exec(
                *map(str, command), stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log,
                start_new_session=True, env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
            )  # fmt: skip
        self._running[job.id], self._since[job.id] = process, time.monotonic()
        self._waiting.discard(job.id)
        now = self.store.jobs[job.id]
        if now.is_finished or now.is_paused:  # since the process was asked for
            process.kill()
        else:
            self.update(job, status="running", started_at=job.started_at or int(time.time()))
        self.note(job, "Fine-tuning job started" if job.started_at is None else CONTINUED)
        end = asyncio.create_task(self._wait_for_end(job.id, process))
        self._ends.add(end)
        end.add_done_callback(self._ends.discard)

    async def _wait_for_end(self, job_id: str, process: asyncio.subprocess.Process) -> None:
        status = await process.wait()
        del self._running[job_id], self._since[job_id]
        job = self.store.jobs[job_id]
        try:
            if not job.is_finished:
                self._record_end(job, status)
        except (OSError, RorqualError) as error:  # such as a full disk; the next process of the job ends at once
            say(f"the end of job {job_id} cannot be recorded yet: {error}")
            self._not_before[job_id] = time.monotonic() + RETRY_SECONDS
            self.update(job, status="queued")
        self.wake()

    def _record_end(self, job: Job, status: int) -> None:
        """Record that the process of a job has ended. Only an `outcome.json` ends a job; otherwise the job is resumed later."""
        folder = self.store.folder(job.id)
        outcome = folder.outcome()
        if outcome is None:
            # A process that is stopped before it can write a checkpoint ends by SIGTERM.
            self._deaths[job.id] += status not in (PAUSED, DISK_FULL, -signal.SIGTERM) and not job.is_paused
            if status == DISK_FULL:
                self._not_before[job.id] = time.monotonic() + RETRY_SECONDS
                self._note_full_disk(job)
            elif status == OUT_OF_MEMORY:
                problem = (
                    f"The job needs more than {self.memory:,} bytes of memory. Give a smaller batch_size, or shorter examples. "
                    "The operator can raise tune_memory=."
                )
                outcome = Outcome(error=JobError(code="out_of_memory", message=problem))
            elif self._deaths[job.id] >= TRIES:
                problem = f"The job's process died {TRIES} times. The operator finds the reason in the job's log."
                outcome = Outcome(error=JobError(code="server_error", message=problem))
        if outcome is None:
            self.update(job, status="queued")
            if job.is_paused:
                self.note(job, PAUSED_MESSAGE)
        elif outcome.error is not None:
            self.finish(job, "failed", outcome.error)
        else:
            results, tokens = self.store.add_results(job), outcome.trained_tokens
            self.note(job, f"The report is the result file {results[-1]}")
            self.note(job, f"New fine-tuned model created: {job.model_name}")
            self.finish(job, "succeeded", trained_tokens=tokens, result_files=results)

    def finish(self, job: Job, status: str, error: JobError | None = None, **changes: Any) -> Job:
        """End a job, and tell it in an event."""
        if error is not None:
            error = error.model_copy(update={"message": self.store.with_file_names(job, error.message)})
        words = {"succeeded": "The job has successfully completed", "cancelled": "Fine-tuning job cancelled"}
        message = words.get(status) or f"The job failed: {error.message if error else 'no reason is known'}"
        self.note(job, message, "error" if status == "failed" else "info")
        job = self.update(job, status=status, error=error, finished_at=int(time.time()), **changes)
        if job.id not in self._unsaved:  # else the next server, which does not know the end, needs them
            self.store.folder(job.id).delete_training_files()
        if status != "succeeded":
            shutil.rmtree(self.store.folder(job.id).taught, ignore_errors=True)
        return job

    def _note_full_disk(self, job: Job) -> None:
        """Say once that a job waits, until it starts again."""
        if job.id not in self._waiting and self.note(job, DISK_MESSAGE, "warn"):
            self._waiting.add(job.id)

    def note(self, job: Job, message: str, level: Level = "info") -> bool:
        """Add an event, also to the server's log, and return whether the disk has room for it."""
        say(f"job {job.id} of tenant '{job.tenant}': {message}")
        try:
            self.store.folder(job.id).add_event(level, message)
        except RorqualError:
            return False
        return True

    async def stop_job(self, job: Job, *, at_once: bool) -> None:
        """Stop the process of a job, if it runs. Without `at_once`, the process first writes a checkpoint, which may take longer than
        this call, for example if a step does."""
        process = self._running.get(job.id)
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill() if at_once else process.terminate()
        with suppress(TimeoutError):  # the job runs until it has stopped
            async with asyncio.timeout(CHECKPOINT_SECONDS):
                await process.wait()
