"""The limit on open files of the server. Each connection uses one file descriptor."""

from __future__ import annotations

import resource

MOST_FILES = 8192
"""The highest limit on open files that the server sets. More open files would allow more idle connections, and each idle
connection takes memory."""
AT_ONCE = 128
"""Maximum number of connections that asyncio accepts in one iteration of the event loop.

The number of connections may exceed the connection limit by `AT_ONCE` until idle connections are closed. If no file
descriptor is free, `accept` fails `AT_ONCE` times per iteration of the event loop."""


def raise_open_file_limit() -> int:
    """Set this process's open-file limit to `MOST_FILES` or the hard limit, whichever is lower, and return the new limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most
