"""Watch a task's generator: report when it stalls, and stop it after a CPU-time limit."""

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
"""Seconds to wait for a problem before the first report on stderr. The wait doubles before each further report."""
BEAT = 0.25

T = TypeVar("T")


def watched(name: str, given: Iterator[T], patience: float, say: float = SAY_SECONDS) -> Iterator[T]:
    """Yield from `given`. If no item arrives for `say` seconds, print a line to stderr and continue.

    Raises TaskError if this thread spends more than `patience` CPU seconds on one item. Time spent waiting does not
    count. The limit interrupts the generator with SIGINT, which requires the main thread and Python's default handler.
    Without the main thread and the default handler, `watched` only reports.
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
    """The watchdog of one generator.

    `since` is the start time of the current item, None between items. `used` is the thread's CPU seconds at `since`.
    """

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
        """Watch the `with` block, which produces one item."""
        self.used, self.since = time.thread_time(), time.monotonic()
        try:
            yield
            with self.lock:
                self.since = None
            while self.late:  # wait for the pending SIGINT
                time.sleep(BEAT)
        except KeyboardInterrupt:
            if not self.late:
                raise
            raise TaskError(
                f"the generator used over {self.patience:g} CPU seconds without yielding another problem"
                f" ({self.yielded} problems so far)",
                where=f"task {self.name}",
                remedy="Fix problems(), or give the class a larger `patience`.",
            ) from None
        finally:
            self.since = None
        self.yielded += 1

    def run(self) -> None:
        """Report stalls and enforce the CPU limit, in a thread of its own."""
        wait = self.say
        while not self.ended.wait(min(BEAT, self.say)):
            since = self.since
            seconds = 0.0 if since is None else time.monotonic() - since
            if seconds < self.say:
                wait = self.say
            elif seconds >= wait:
                wait *= 2
                print(
                    f"task {self.name}: no problem for {seconds:.0f} s ({self.yielded} so far); press Ctrl-C to stop",
                    file=sys.stderr,
                    flush=True,
                )
            with self.lock:
                over = time.clock_gettime(self.clock) - self.used > self.patience
                if self.stops and over and self.since is not None and self.since == since:
                    self.late = True
                    signal.raise_signal(signal.SIGINT)
                    return
