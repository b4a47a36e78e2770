"""Progress bars of commands: `ByteProgressBar` for checkpoint conversions, in megabytes, and `progress_bar_callback` for work
that is counted in other units."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rorqual.core.progress import Progress

MB = 1_000_000


class ByteProgressBar:
    """A callback `progress(done, total, name)` that shows a progress bar on standard error, unless `quiet`. `done` and
    `total` are in bytes."""

    def __init__(self, label: str, *, quiet: bool) -> None:
        self.label, self.quiet = label, quiet
        self._bar: Progress | None = None

    def __call__(self, done: int, total: int, name: str) -> None:
        if self.quiet:
            return
        if self._bar is None:
            self._bar = Progress(self.label, max(1, round(total / MB)), unit="MB")
        self._bar.update(self._bar.total if done >= total else min(done // MB, self._bar.total - 1), name)

    def say(self, notes: Iterable[str]) -> None:
        """Print each note on its own line, above the progress bar."""
        for note in notes if not self.quiet else ():
            (self._bar or Progress(self.label, 1)).say(note)


def progress_bar_callback(label: str, unit: str) -> Callable[[int, int], None]:
    """Return a callback `progress(done, total)` that shows a progress bar on standard error."""
    bar = Progress(label, 1, unit=unit)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done)

    return show
