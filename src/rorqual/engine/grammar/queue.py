"""Whose grammar is compiled next: tenants take turns, so that the many of one wait behind each other, not before the one of another."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Build(Future[T]):
    """Work that waits for its turn. `began`: when it came, by `time.monotonic`; None before. To `cancel` it helps until then."""

    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__()
        self.began: float | None = None
        self.tenants: set[str] = set()
        self._work = work
        self._turn = threading.Event()

    def begin(self) -> bool:
        """Whether it is to run now; it asks once."""
        if self.done() or self.running() or not self.set_running_or_notify_cancel():
            return False
        self.began = time.monotonic()
        self._turn.set()
        return True

    def run(self) -> None:
        """What `begin` was asked for."""
        try:
            result = self._work()
        except BaseException as error:
            self.set_exception(error)
            raise
        self.set_result(result)

    def cancel(self) -> bool:
        cancelled = super().cancel()
        self._turn.set()
        return cancelled

    def within(self, seconds: float) -> T:
        """Its result, where that comes within `seconds` of its turn; else `concurrent.futures.TimeoutError`."""
        self._turn.wait()
        return self.result(seconds)


class Turns(Generic[T]):
    """Threads that run what is added: each tenant's in order, the tenants one after another."""

    def __init__(self, workers: int, name: str) -> None:
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._waiting: OrderedDict[str, deque[Build[T]]] = OrderedDict()  # the first has the next turn
        self._lock = threading.Lock()

    def add(self, tenant: str, build: Build[T]) -> None:
        """Wait for a turn of `tenant`; with one of another's where it was added for that, too."""
        with self._lock:
            if tenant in build.tenants:
                return
            build.tenants.add(tenant)
            self._waiting.setdefault(tenant, deque()).append(build)
        self._workers.submit(self._run)

    def close(self) -> None:
        """What has not begun never will."""
        self._workers.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            left = [build for builds in self._waiting.values() for build in builds]
            self._waiting.clear()
        for build in left:
            build.cancel()

    def _run(self) -> None:
        build = self._next()
        if build is not None:
            build.run()

    def _next(self) -> Build[T] | None:
        with self._lock:
            while self._waiting:
                tenant, builds = self._waiting.popitem(last=False)
                while builds:
                    build = builds.popleft()
                    if build.begin():
                        if builds:
                            self._waiting[tenant] = builds  # behind all others
                        return build
        return None
