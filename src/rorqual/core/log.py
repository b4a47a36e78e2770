"""Progress on a terminal: done, speed and time left. One line that is rewritten, or separate lines in a pipe."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO


def clock(seconds: float) -> str:
    """Format seconds as a clock: `75.2` gives `1:15`."""
    whole = max(0, round(seconds))
    return (
        f"{whole // 60}:{whole % 60:02d}"
        if whole < 3600
        else f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    )


@dataclass
class Progress:
    """Prints `label  done/total  fields  speed  left m:ss` to `stream` (standard error), at most once per `every` seconds."""

    label: str
    total: int
    unit: str = "step"
    start: int = 0
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    every: float = 5.0

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._shown = self._began
        self._live = self.stream.isatty()

    def update(self, done: int, note: str = "") -> None:
        """Report that `done` of `total` are done. `note` is a value to show, such as `loss 0.31`."""
        now = time.monotonic()
        last = done >= self.total
        if not last and now - self._shown < (0.2 if self._live else self.every):
            return
        self._shown = now
        spent = max(now - self._began, 1e-9)
        speed = (done - self.start) / spent
        left = clock((self.total - done) / speed) if speed > 0 else "?"
        text = f"{self.label}  {done}/{self.total}  {note}  {speed:.1f} {self.unit}/s  left {left}"
        end = "\n" if last or not self._live else ""
        self.stream.write(("\r\x1b[K" if self._live else "") + text + end)
        self.stream.flush()

    def say(self, text: str) -> None:
        """Print a separate line above the progress line."""
        self.stream.write(("\r\x1b[K" if self._live else "") + text + "\n")
