"""A log that a flood cannot fill: lines of one kind are rare, and it is said how many were left out."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

MOST, WINDOW = 10, 60.0
"""Lines of one kind that are written in so many seconds."""
KINDS = 256
"""Kinds that are told apart; all others are one."""
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
    """Lets `MOST` records of a kind through in each `WINDOW`. A kind is a logger and the first line of a message, whatever its numbers.

    Anybody can cause such lines, without a key: by what is no HTTP, for example.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
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
        """Say of every kind how many lines were left out so far."""
        kinds, self._kinds = self._kinds, {}
        for kind in kinds.values():
            self._tell(kind)

    def _tell(self, kind: _Kind) -> None:
        if kind.left_out:
            seconds = self._clock() - kind.since
            say(f"{kind.left_out:,} more lines like this were left out in {seconds:.0f} seconds: {kind.text}")


def say(text: str) -> None:
    """One line of the log."""
    print(f"rorqual serve: {text}", file=sys.stderr, flush=True)
