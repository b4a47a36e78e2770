"""A rate-limited log: few lines of one kind are written, and the number of omitted ones is logged."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

MOST, WINDOW = 10, 60.0
"""At most `MOST` lines of one kind are written per `WINDOW` seconds."""
KINDS = 256
"""Number of kinds with separate limits. All further kinds share one."""
_VARIES = re.compile(r"0x[0-9a-f]+|\d+")


@dataclass
class _Kind:
    text: str
    since: float
    seen: int = 0

    @property
    def left_out(self) -> int:
        return max(0, self.seen - MOST)


class Quiet(logging.Filter):
    """Passes `MOST` records of a kind in each `WINDOW`. A kind is a logger and a message's first line without its numbers.

    Clients without a key can cause such records, for example by sending invalid HTTP.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is written."""
        text = str(record.msg).partition("\n")[0][:200]
        key = record.name, _VARIES.sub("#", text)
        if key not in self._kinds and len(self._kinds) >= KINDS:
            key = "", ""
        now = self._clock()
        kind = self._kinds.setdefault(key, _Kind(text, now))
        if now - kind.since >= WINDOW:
            self._tell(kind)
            kind.since, kind.seen = now, 0
        kind.seen += 1
        return kind.seen <= MOST

    def flush(self) -> None:
        """Log for every kind how many lines were omitted so far."""
        kinds, self._kinds = self._kinds, {}
        for kind in kinds.values():
            self._tell(kind)

    def _tell(self, kind: _Kind) -> None:
        if kind.left_out:
            seconds = self._clock() - kind.since
            say(f"omitted {kind.left_out:,} more lines like this in {seconds:.0f} seconds: {kind.text}")


def say(text: str) -> None:
    """Write one line to the log."""
    print(f"rorqual serve: {text}", file=sys.stderr, flush=True)
