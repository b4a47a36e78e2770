"""Stop strings, matched while text is generated."""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Cuts text before the first stop string. If two overlap, the one that ends first counts, as it would in a stream.

    No stop string may end within the first `unheard` characters.
    """

    def __init__(self, stops: Sequence[str], unheard: int = 0) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self._unheard = unheard
        self.hit = False

    def feed(self, text: str, *, last: bool = False, heard: bool = True) -> str:
        """Return the text that is certain; after a match, return "". If `heard` is false, no stop string may end in `text`."""
        if self.hit or not self._stops:
            return "" if self.hit else text
        self._held += text
        if not heard:
            self._unheard = max(self._unheard, len(self._held))
        found = [(at + len(stop), at) for stop in self._stops if (at := self._find(stop)) >= 0]
        if found:
            self.hit = True
            return self._held[: min(found)[1]]
        waits = 0 if last else max(self._overlap(stop) for stop in self._stops)
        shown, self._held = self._held[: len(self._held) - waits], self._held[len(self._held) - waits :]
        self._unheard = max(0, self._unheard - len(shown))
        return shown

    def _find(self, stop: str) -> int:
        return self._held.find(stop, max(0, self._unheard - len(stop) + 1))

    def _overlap(self, stop: str) -> int:
        """Return the length of the longest end of the held text that may become `stop`."""
        most = min(len(stop) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if self._held.endswith(stop[:n])), 0)
