"""Match stop strings in a reply during its generation."""

from __future__ import annotations

from collections.abc import Sequence


class StopStringMatcher:
    """A streaming matcher that truncates text before the first stop string.

    If two stop strings overlap, the match that ends first is used. Stop strings that end within the first `unheard` characters
    are ignored. Ignoring these stop strings implements `min_tokens`.
    """

    def __init__(self, stops: Sequence[str], unheard: int = 0) -> None:
        self._stops = [stop for stop in stops if stop]
        self._pending = ""
        self._ignored = unheard
        self.hit = False

    def feed(self, text: str, *, last: bool = False, heard: bool = True) -> str:
        """Read the next chunk of text. Return the text that cannot be part of a stop string, or "" after a match.

        If `heard` is false, stop strings that end in this chunk of text are ignored. `last` is true for the last chunk.
        """
        if self.hit or not self._stops:
            return "" if self.hit else text
        self._pending += text
        if not heard:
            self._ignored = max(self._ignored, len(self._pending))
        matches = [(at + len(stop), at) for stop in self._stops if (at := self._find_stop(stop)) >= 0]
        if matches:
            self.hit = True
            return self._pending[: min(matches)[1]]
        overlap = 0 if last else max(self._stop_overlap_length(stop) for stop in self._stops)
        complete, self._pending = (
            self._pending[: len(self._pending) - overlap],
            self._pending[len(self._pending) - overlap :],
        )
        self._ignored = max(0, self._ignored - len(complete))
        return complete

    def _find_stop(self, stop: str) -> int:
        return self._pending.find(stop, max(0, self._ignored - len(stop) + 1))

    def _stop_overlap_length(self, stop: str) -> int:
        """Return the length of the longest suffix of the buffered text that is a prefix of `stop`."""
        longest = min(len(stop) - 1, len(self._pending))
        return next((n for n in range(longest, 0, -1) if self._pending.endswith(stop[:n])), 0)
