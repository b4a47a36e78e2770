"""File descriptors: each connection holds one, and so does all else that a process opens."""

from __future__ import annotations

import asyncio
import errno
import resource
import sys
import time
from typing import Any

MOST_FILES = 8192
"""More are not asked for: each idle connection costs memory, too."""
QUIET = 60.0
"""Seconds between two complaints."""
AT_ONCE = 128
"""Connections that are accepted at once: so many may be open beyond the limit before one of them is closed, and where no descriptor is
left so often is it tried in vain."""


def raise_limit() -> int:
    """How many files this process may hold open, after it has asked for as many as the system lets it, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError):  # a system that refuses leaves what there was
            return soft
        return most
    return most if soft == resource.RLIM_INFINITY else soft


class Complaints:
    """An event loop's handler of errors. Where there are no descriptors left, asyncio shows a traceback for each connection that waits."""

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
