"""A queue of compilations that serves tenants in turn, so that no tenant delays other tenants."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from rorqual.engine.grammar.trial import TrialProcess

T = TypeVar("T")


class CompileTask(Future[T]):
    """A queued compilation, which is also the future of the compiled grammar. `work` compiles a grammar, given a trial process
    and an event that `cancel` sets."""

    def __init__(self, tenant: str, work: Callable[[TrialProcess, threading.Event], T]) -> None:
        super().__init__()
        self.tenant = tenant
        self._work = work
        self._stopped = threading.Event()
        self._trial: TrialProcess | None = None

    def run(self, trial: TrialProcess) -> None:
        """Run the task, and set the future's result. If `work` raises an error, the future gets the error, and `run` raises the
        same error."""
        self._trial = trial
        try:
            result = self._work(trial, self._stopped)
        except BaseException as error:
            self.set_exception(error)
            raise
        self.set_result(result)

    def cancel(self) -> bool:
        """Cancel the task if the task has not started. If the task is running a trial, kill the trial."""
        self._stopped.set()
        if self._trial is not None:
            self._trial.stop(self._stopped)
        return super().cancel()


class CompileQueue(Generic[T]):
    """Threads that run compilation tasks, round-robin over tenants. The tasks of one tenant run one at a time, in the order in
    which the tasks were added."""

    def __init__(self, workers: int) -> None:
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="grammar")
        self._trials = [TrialProcess() for _ in range(workers)]
        self._idle = [*self._trials]
        self._waiting: OrderedDict[str, deque[CompileTask[T]]] = OrderedDict()
        self._busy: set[str] = set()
        self._lock = threading.Lock()

    def add(self, task: CompileTask[T]) -> None:
        """Queue a compilation task."""
        with self._lock:
            self._waiting.setdefault(task.tenant, deque()).append(task)
        self._threads.submit(self._run_next_task)

    def close(self) -> None:
        """Cancel all compilation tasks and end the trial processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            pending = [task for tasks in self._waiting.values() for task in tasks]
            self._waiting.clear()
        for task in pending:
            task.cancel()
        for trial in self._trials:
            trial.close()

    def _run_next_task(self) -> None:
        if (task := self._take_next_task()) is None:
            return
        trial = self._idle.pop()
        try:
            task.run(trial)
        finally:
            with self._lock:
                self._idle.append(trial)
                self._busy.discard(task.tenant)
            self._threads.submit(self._run_next_task)  # the tenant may have a further task

    def _take_next_task(self) -> CompileTask[T] | None:
        """Claim the next task of a tenant that has no running task, and return the claimed task."""
        with self._lock:
            while (tenant := next((one for one in self._waiting if one not in self._busy), None)) is not None:
                tasks = self._waiting.pop(tenant)
                task = tasks.popleft()
                if tasks:
                    self._waiting[tenant] = tasks  # behind all other tenants
                if task.set_running_or_notify_cancel():
                    self._busy.add(tenant)
                    return task
        return None
