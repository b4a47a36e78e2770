"""Serialize engine calls that come from several threads, from callbacks or from garbage collection."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch

from rorqual.core.errors import ConfigError
from rorqual.engine.request import Arrived, Completion

Progress = Callable[[int, int], None]
T = TypeVar("T")


class CallLock:
    """A lock for engine calls. An engine call from another thread waits for the lock. A reentrant engine call raises
    ConfigError.

    Without this ConfigError, a reentrant engine call would deadlock or see a half-finished step. `with lock("step"):` enters
    the `RLock` directly, so that a KeyboardInterrupt cannot leave the `RLock` held.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.helpers: set[int] = set()
        """Thread ids of the helper threads of the engine call that holds the lock."""

    def __call__(self, name: str) -> AbstractContextManager[bool]:
        """Return a context manager that holds the lock while the engine method `name` runs.

        Raises ConfigError if the calling thread already holds the lock.
        """
        if self.is_held_by_this_thread():
            raise ConfigError(
                f"{name} was called from within another call of the same engine",
                where="engine",
                remedy="Call this method after the outer call has returned.",
            )
        return self.lock

    @contextmanager
    def register_helper_thread(self) -> Iterator[None]:
        """Register the calling thread as a helper of the engine call that holds the lock, and limit torch to one thread in the
        calling thread."""
        torch.set_num_threads(1)
        self.helpers.add(threading.get_ident())
        try:
            yield
        finally:
            self.helpers.discard(threading.get_ident())

    def run_in_helper_threads(
        self, items: Sequence[T], work: Callable[[T], None], threads: int, stop: threading.Event
    ) -> None:
        """Call `work` on each item in up to `threads` helper threads. With a single item or `threads=1`, the calling thread
        makes all calls of `work`.

        After an error or KeyboardInterrupt, `run_in_helper_threads` sets `stop`, waits for the running helpers, and raises the first
        error.
        """
        if min(threads, len(items)) <= 1:
            with limit_threads(1):
                for item in items:
                    work(item)
            return

        def run_as_helper(item: T) -> None:
            with self.register_helper_thread():
                work(item)

        with ThreadPoolExecutor(threads, thread_name_prefix="engine") as pool:
            try:
                for future in [pool.submit(run_as_helper, item) for item in items]:
                    future.result()
            finally:
                stop.set()

    def is_held_by_this_thread(self) -> bool:
        """Return whether the calling thread is inside the engine call that holds the lock."""
        return self.lock._is_owned() or threading.get_ident() in self.helpers  # type: ignore[attr-defined]


@contextmanager
def limit_threads(threads: int) -> Iterator[None]:
    """Limit torch to `threads` threads inside the `with` block."""
    before = torch.get_num_threads()
    if before <= threads:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assign_items_to_cores(sizes: Sequence[int], cores: int) -> list[int]:
    """Assign items of the given sizes to engine cores, and return the engine core's index for each item.

    Each item goes to the engine core whose items have the smallest total size so far.
    """
    loads, chosen = [0] * cores, list[int]()
    for size in sizes:
        chosen.append(loads.index(min(loads)))
        loads[chosen[-1]] += size
    return chosen


class CompletionCollector:
    """Thread-safe collection of a batch's finished samples. Request i has `sizes[i]` samples."""

    def __init__(self, sizes: Sequence[int], progress: Progress | None, arrived: Arrived | None) -> None:
        self._rows: list[list[Completion | None]] = [[None] * size for size in sizes]
        self._progress, self._arrived = progress, arrived
        self._done, self._total = 0, sum(sizes)
        self._lock = threading.Lock()

    def add(self, request: int, sample: int, completion: Completion) -> None:
        """Store one finished sample, then call `arrived` and `progress`."""
        with self._lock:
            self._rows[request][sample] = completion
            self._done += 1
            if self._arrived is not None:
                self._arrived(request, sample, completion)
            if self._progress is not None:
                self._progress(self._done, self._total)

    def completions_by_request(self) -> list[list[Completion]]:
        """Return one list of finished samples per request, in the order of the requests."""
        return [[completion for completion in row if completion is not None] for row in self._rows]
