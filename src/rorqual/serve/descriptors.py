"""File descriptor limits. Each connection uses one descriptor."""

from __future__ import annotations

import asyncio
import errno
import resource
import sys
import time
from typing import Any

MOST_FILES = 8192
"""The highest descriptor limit that the server sets. More descriptors would allow more idle connections, and each idle
connection takes memory."""
QUIET = 60.0
"""Minimum number of seconds between two log lines about exhausted file descriptors."""
AT_ONCE = 128
"""Maximum number of connections that asyncio accepts in one iteration of the event loop.

The number of connections may exceed the connection limit by `AT_ONCE` until idle connections are closed. If no
descriptor is free, `accept` fails `AT_ONCE` times per iteration."""


def raise_limit() -> int:
    """Raise this process's open-file limit to `MOST_FILES` or the hard limit, whichever is lower. Return the limit in
    effect."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError):  # the system refused, so the old limit stays
            return soft
        return most
    return most if soft == resource.RLIM_INFINITY else soft


class DescriptorErrorHandler:
    """An asyncio exception handler that logs exhausted file descriptors in one line, at most once per `QUIET` seconds.

    The default handler would print a traceback for each failed `accept`.
    """

    def __init__(self) -> None:
        self._last: float | None = None  # time of the last log line

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
            return
        now = time.monotonic()
        if self._last is None or now - self._last > QUIET:
            self._last = now
            print("rorqual serve: out of file descriptors; raise the limit (ulimit -n)", file=sys.stderr, flush=True)
