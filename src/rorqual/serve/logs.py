"""Rate-limited logging. Repeated lines of the same kind are omitted, and the number of omitted lines is logged."""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter

MOST, WINDOW = 10, 60.0
"""Maximum number of log lines of the same kind, and the time window for this limit in seconds."""
KINDS = 256
"""Maximum number of kinds with separate limits. All further kinds share one limit."""
_VARIES = re.compile(r"0x[0-9a-f]+|\d+")


class RateLimitFilter(logging.Filter):
    """A logging filter that passes at most `MOST` records of each kind between two calls of `flush`.

    Records are of the same kind if the first lines of their messages differ only in numbers. The limit is needed because
    clients without an API key can cause log lines, for example by sending invalid HTTP.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a record."""
        kind = _VARIES.sub("#", str(record.msg).partition("\n")[0][:200])
        if kind not in self._seen and len(self._seen) >= KINDS:
            kind = "of other kinds"
        self._seen[kind] += 1
        return self._seen[kind] <= MOST

    def flush(self) -> None:
        """Log how many lines of each kind were omitted, and reset the counts. The server calls this every `WINDOW` seconds."""
        seen, self._seen = self._seen, Counter()
        for kind, count in seen.items():
            if count > MOST:
                say(f"omitted {count - MOST:,} more lines like this: {kind}")


def say(text: str) -> None:
    """Write one line to the log."""
    print(f"rorqual serve: {text}", file=sys.stderr, flush=True)
