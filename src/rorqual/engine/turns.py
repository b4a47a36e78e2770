"""Who may change what an engine holds: one call at a time, whatever threads, callbacks and garbage collections ask for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch

from rorqual.core.errors import ConfigError

Progress = Callable[[int, int], None]


class Turn:
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


def shared_out(sizes: Sequence[int], lanes: int) -> list[int]:
    """For each size the lane that has the least so far."""
    loads, chosen = [0] * lanes, list[int]()
    for size in sizes:
        chosen.append(loads.index(min(loads)))
        loads[chosen[-1]] += size
    return chosen


class Counter:
    """Counts finished samples over threads."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """So many more; tells `progress`."""
        if count and self.progress is not None:
            with self._lock:
                self.done += count
                self.progress(self.done, self.total)
