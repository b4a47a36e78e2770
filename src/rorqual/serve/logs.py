"""Rate-limited logging. Repeated lines of the same kind are omitted, and the number of omitted lines is logged."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

MOST, WINDOW = 10, 60.0
"""Maximum number of log lines of the same kind, and the time window for this limit in seconds."""
KINDS = 256
"""Maximum number of kinds with separate limits. All further kinds share one limit."""
_VARIES = re.compile(r"0x[0-9a-f]+|\d+")


@dataclass
class _Kind:
    text: str
    since: float
    seen: int = 0

    @property
    def left_out(self) -> int:
        return max(0, self.seen - MOST)


class RateLimitFilter(logging.Filter):
    """A logging filter that passes at most `MOST` records of each kind per `WINDOW` seconds.

    Records are of the same kind if they come from the same logger and the first lines of their messages differ only in
    numbers. The limit is needed because clients without an API key can cause log lines, for example by sending invalid
    HTTP.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a record."""
        text = str(record.msg).partition("\n")[0][:200]
        key = record.name, _VARIES.sub("#", text)
        if key not in self._kinds and len(self._kinds) >= KINDS:
            key = "", ""
        now = self._clock()
        kind = self._kinds.setdefault(key, _Kind(text, now))
        if now - kind.since >= WINDOW:
            self._log_omitted(kind)
            kind.since, kind.seen = now, 0
        kind.seen += 1
        return kind.seen <= MOST

    def flush(self) -> None:
        """Log how many lines of each kind were omitted, and reset the counts."""
        kinds, self._kinds = self._kinds, {}
        for kind in kinds.values():
            self._log_omitted(kind)

    def _log_omitted(self, kind: _Kind) -> None:
        if kind.left_out:
            seconds = self._clock() - kind.since
            say(f"omitted {kind.left_out:,} more lines like this in {seconds:.0f} seconds: {kind.text}")


def say(text: str) -> None:
    """Write one line to the log."""
    print(f"rorqual serve: {text}", file=sys.stderr, flush=True)
