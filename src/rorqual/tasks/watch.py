"""A watch over code that yields problems: it may take its time, but not in silence, and not for ever."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from rorqual.core.errors import TaskError

SAY_SECONDS = 10.0
"""Seconds without a problem after which it is said on standard error, and each time that they have doubled."""
BEAT = 0.25

T = TypeVar("T")


def watched(name: str, given: Iterator[T], patience: float, say: float = SAY_SECONDS) -> Iterator[T]:
    """What `given` yields. Where nothing comes for `say` seconds, a line on standard error says so, and it goes on.

    One item that takes more than `patience` processor seconds of this thread is a `TaskError`: a slow or busy machine, or a wait for
    something, never is. It needs the main thread and Python's own Ctrl-C, by which the code is interrupted; elsewhere it is only said.
    """
    watch = Watch(name, patience, say)
    threading.Thread(target=watch.run, daemon=True).start()
    try:
        while True:
            with watch.over():
                try:
                    item = next(given)
                except StopIteration:
                    return
            yield item
    finally:
        watch.ended.set()


class Watch:
    """`since` is when the item at hand was asked for, None between two of them; `used`: this thread's processor seconds then."""

    def __init__(self, name: str, patience: float, say: float) -> None:
        self.name, self.patience, self.say = name, patience, say
        self.ended, self.lock = threading.Event(), threading.Lock()
        self.since: float | None = None
        self.used, self.yielded, self.late = 0.0, 0, False
        self.clock = time.pthread_getcpuclockid(threading.get_ident())
        main = threading.current_thread() is threading.main_thread()
        self.stops = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler

    @contextmanager
    def over(self) -> Iterator[None]:
        """Watch the block."""
        self.used, self.since = time.thread_time(), time.monotonic()
        try:
            yield
            with self.lock:
                self.since = None
            while self.late:  # the interruption is on its way
                time.sleep(BEAT)
        except KeyboardInterrupt:
            if not self.late:
                raise
            raise TaskError(
                f"its generator took over {self.patience:g} processor seconds and yielded no further problem ({self.yielded} before)",
                where=f"task {self.name}",
                remedy="Mend problems(), or give the class a larger `patience`.",
            ) from None
        finally:
            self.since = None
        self.yielded += 1

    def run(self) -> None:
        """In a thread beside."""
        wait = self.say
        while not self.ended.wait(min(BEAT, self.say)):
            since = self.since
            seconds = 0.0 if since is None else time.monotonic() - since
            if seconds < self.say:
                wait = self.say
            elif seconds >= wait:
                wait *= 2
                print(
                    f"task {self.name} has yielded no problem for {seconds:.0f} s ({self.yielded} before); Ctrl-C stops",
                    file=sys.stderr,
                    flush=True,
                )
            with self.lock:
                over = time.clock_gettime(self.clock) - self.used > self.patience
                if self.stops and over and self.since is not None and self.since == since:
                    self.late = True
                    signal.raise_signal(signal.SIGINT)
                    return
