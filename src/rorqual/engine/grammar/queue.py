"""A compile queue with round-robin over tenants, so that one tenant with many grammars does not delay the others."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class CompileTask(Future[T]):
    """A queued task and the future of its result.

    `began` is the start time of the task (`time.monotonic`). Before the start, `began` is None and the task can be
    cancelled.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__()
        self.began: float | None = None
        self.tenants: set[str] = set()
        self._work = work
        self._turn = threading.Event()

    def begin(self) -> bool:
        """Claim the task and return whether the caller must `run` it. Only the first call can return True."""
        if self.done() or self.running() or not self.set_running_or_notify_cancel():
            return False
        self.began = time.monotonic()
        self._turn.set()
        return True

    def run(self) -> None:
        """Run the task after `begin` has returned True, and set the result."""
        try:
            result = self._work()
        except BaseException as error:
            self.set_exception(error)
            raise
        self.set_result(result)

    def cancel(self) -> bool:
        """Cancel the task if it has not started, and wake the threads that wait in `within`."""
        cancelled = super().cancel()
        self._turn.set()
        return cancelled

    def within(self, seconds: float) -> T:
        """Wait for the result and return it. Raises `concurrent.futures.TimeoutError` if the task runs longer than
        `seconds`, not counting time in the queue."""
        self._turn.wait()
        return self.result(seconds)


class CompileQueue(Generic[T]):
    """Worker threads that run builds, round-robin over tenants.

    The builds of one tenant run in the order in which they were added.
    """

    def __init__(self, workers: int, name: str) -> None:
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix=name)
        # The first tenant's build runs next.
        self._waiting: OrderedDict[str, deque[CompileTask[T]]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, tenant: str, build: CompileTask[T]) -> None:
        """Queue `build` for `tenant`.

        If several tenants add the same build, it runs only once, as soon as one of these tenants is next.
        """
        with self._lock:
            if tenant in build.tenants:
                return
            build.tenants.add(tenant)
            self._waiting.setdefault(tenant, deque()).append(build)
        self._workers.submit(self._run)

    def close(self) -> None:
        """Cancel all builds that have not started."""
        self._workers.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            pending = [build for builds in self._waiting.values() for build in builds]
            self._waiting.clear()
        for build in pending:
            build.cancel()

    def _run(self) -> None:
        build = self._next()
        if build is not None:
            build.run()

    def _next(self) -> CompileTask[T] | None:
        with self._lock:
            while self._waiting:
                tenant, builds = self._waiting.popitem(last=False)
                while builds:
                    build = builds.popleft()
                    if build.begin():
                        if builds:
                            self._waiting[tenant] = builds  # move the tenant behind all other tenants
                        return build
        return None
