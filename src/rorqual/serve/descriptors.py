"""File descriptor limits. Each connection uses one descriptor."""

from __future__ import annotations

import asyncio
import errno
import resource
import sys
import time
from typing import Any

MOST_FILES = 8192
"""The descriptor limit is not raised beyond this, because each idle connection also costs memory."""
QUIET = 60.0
"""Seconds between two log lines about a lack of descriptors."""
AT_ONCE = 128
"""Connections accepted in one go. So many may exceed the limit before one is closed. Without free descriptors, accepting
fails as often."""


def raise_limit() -> int:
    """Raise this process's limit of open files up to `MOST_FILES`, as far as the system allows. Return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError):  # the system refused; the old limit stays
            return soft
        return most
    return most if soft == resource.RLIM_INFINITY else soft


class Complaints:
    """An event loop's exception handler that logs a lack of descriptors in one line, at most once per `QUIET` seconds.

    Without it, asyncio prints a traceback for each waiting connection.
    """

    def __init__(self) -> None:
        self._last: float | None = None

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
            return
        now = time.monotonic()
        if self._last is None or now - self._last > QUIET:
            self._last = now
            print("rorqual serve: out of file descriptors; raise the limit (ulimit -n)", file=sys.stderr, flush=True)
