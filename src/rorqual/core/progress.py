"""Progress reports with the steps done, the speed and the remaining time.

On a terminal or in a notebook the report is one line that is rewritten. In a pipe or a file each report is a separate line.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO


def clock_text(seconds: float) -> str:
    """Format a duration in seconds as m:ss or h:mm:ss: `75.2` gives `1:15`."""
    total = max(0, round(seconds))
    return (
        f"{total // 60}:{total % 60:02d}"
        if total < 3600
        else f"{total // 3600}:{total % 3600 // 60:02d}:{total % 60:02d}"
    )


EARLY, SLOW = 0.02, 0.2
"""Until the share `EARLY` of the work units is done, a progress report shows no remaining time. If the speed is below `SLOW`
units per second, a report shows seconds per unit."""


@dataclass
class Progress:
    """A progress report, printed to `stream` as `label  done/total  note  speed  left m:ss`.

    `every` is the minimum number of seconds between two lines; on a terminal or in a notebook, the line is instead rewritten at
    most every 0.2 s. `start` is the number of units that an earlier process completed; the reported speed excludes units of earlier
    processes.
    """

    label: str
    total: int
    unit: str = "step"
    start: int = 0
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    every: float = 5.0

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._shown = self._began
        # A notebook's stream is no terminal. It goes back to the start of a line, but does not erase the line.
        self._notebook = type(self.stream).__module__.startswith("ipykernel.")
        self._live = self._notebook or self.stream.isatty()
        self._width = 0

    def update(self, done: int, note: str = "") -> None:
        """Report that `done` of `total` units are done. `note` is shown after the count, such as `loss 0.31`."""
        now = time.monotonic()
        last = done >= self.total
        if not last and now - self._shown < (0.2 if self._live else self.every):
            return
        self._shown = now
        spent = max(now - self._began, 1e-9)
        speed = (done - self.start) / spent
        early = done - self.start < EARLY * (self.total - self.start)  # the first units of a batch say little
        remaining = clock_text((self.total - done) / speed) if speed > 0 and not early else "?"
        pace = f"{speed:.1f} {self.unit}/s" if speed >= SLOW or speed <= 0 else f"{1 / speed:.0f} s/{self.unit}"
        text = f"{self.label}  {done}/{self.total}  {note}  {pace}  left {remaining}"
        self._write(text, "\n" if last or not self._live else "")
        self.stream.flush()

    def say(self, text: str) -> None:
        """Print a separate line above the progress line."""
        self._write(text, "\n")

    def _write(self, text: str, end: str) -> None:
        """Write `text` over the current line. In a notebook, spaces cover the rest of a longer line."""
        start = "\r" if self._notebook else "\r\x1b[K" if self._live else ""
        self.stream.write(start + (text.ljust(self._width) if self._notebook else text) + end)
        self._width = 0 if end else len(text)
