"""Who may change what an engine holds: one call at a time, whatever threads, callbacks and garbage collections ask for."""

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
    """A lock that other threads wait for. A call from within the one that has it is refused: it would wait for ever, or find things half done.

    `with turn("step"):` enters the lock itself, in which no Ctrl-C falls between having it and giving it back.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.helpers: set[int] = set()
        """Threads that work for the call that has the turn."""

    def __call__(self, name: str) -> AbstractContextManager[bool]:
        """The lock, for the call of this name."""
        if self.mine():
            raise ConfigError(
                f"{name} was called from within a call of the same engine",
                where="engine",
                remedy="Call it when that is over.",
            )
        return self.lock

    @contextmanager
    def helping(self) -> Iterator[None]:
        """The calling thread works for the call that has the turn, with one of torch's threads."""
        torch.set_num_threads(1)
        self.helpers.add(threading.get_ident())
        try:
            yield
        finally:
            self.helpers.discard(threading.get_ident())

    def share(self, items: Sequence[T], work: Callable[[T], None], threads: int, stop: threading.Event) -> None:
        """Call `work` with each item: in the calling thread if `threads` or the items are one, else in that many helper threads.

        The first error, or a Ctrl-C, sets `stop`, waits for what runs, and is raised.
        """
        if min(threads, len(items)) <= 1:
            with at_most(1):
                for item in items:
                    work(item)
            return

        def help_with(item: T) -> None:
            with self.helping():
                work(item)

        with ThreadPoolExecutor(threads, thread_name_prefix="engine") as pool:
            try:
                for future in [pool.submit(help_with, item) for item in items]:
                    future.result()
            finally:
                stop.set()

    def mine(self) -> bool:
        """Whether the calling thread is in a call that has the turn."""
        return self.lock._is_owned() or threading.get_ident() in self.helpers  # type: ignore[attr-defined]


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """torch's operations with no more threads than these."""
    before = torch.get_num_threads()
    if before <= threads:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def shared_out(sizes: Sequence[int], cores: int) -> list[int]:
    """For each size the core that has the least so far."""
    loads, chosen = [0] * cores, list[int]()
    for size in sizes:
        chosen.append(loads.index(min(loads)))
        loads[chosen[-1]] += size
    return chosen


class Results:
    """The samples of a batch as they end, over threads: `sizes[i]` of request i."""

    def __init__(self, sizes: Sequence[int], progress: Progress | None, arrived: Arrived | None) -> None:
        self._rows: list[list[Completion | None]] = [[None] * size for size in sizes]
        self._progress, self._arrived = progress, arrived
        self._done, self._total = 0, sum(sizes)
        self._lock = threading.Lock()

    def add(self, request: int, sample: int, completion: Completion) -> None:
        """One more; tells `arrived`, then `progress`."""
        with self._lock:
            self._rows[request][sample] = completion
            self._done += 1
            if self._arrived is not None:
                self._arrived(request, sample, completion)
            if self._progress is not None:
                self._progress(self._done, self._total)

    def rows(self) -> list[list[Completion]]:
        """All, in the order of the requests."""
        return [[completion for completion in row if completion is not None] for row in self._rows]
