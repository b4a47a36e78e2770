"""What a step did, on its way to whoever asked: `Engine.step` or one of several streams."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from rorqual.engine.prompt_scores import PromptScores
from rorqual.engine.request import Completion


@dataclass(frozen=True)
class Delta:
    """What one step of `Engine.step` did for one sample: the token drawn and, where it was the last, the whole sample.

    `logprob` and `top`: its log-probability, and the likeliest tokens with theirs where `top_logprobs` asked for them.
    `hit`: tokens of the prompt that the prefix cache served. `scores`: of the prompt, where `prompt_logprobs` asked for them.
    """

    ticket: int
    sample: int
    token: int
    completion: Completion | None = None
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    hit: int = 0
    scores: PromptScores | None = None


class Outbox:
    """Deltas that are not delivered yet: a queue for each stream, and one for all that was submitted otherwise."""

    def __init__(self) -> None:
        self._streams: dict[int, deque[Delta]] = {}
        self._rest: list[Delta] = []

    def open(self, ticket: int) -> deque[Delta]:
        """From now on the deltas of `ticket` are put there."""
        return self._streams.setdefault(ticket, deque())

    def close(self, ticket: int) -> None:
        """Nobody takes deltas of `ticket` any more."""
        self._streams.pop(ticket, None)
        self._rest = [delta for delta in self._rest if delta.ticket != ticket]

    def put(self, deltas: Iterable[Delta]) -> None:
        """Each to whom it belongs."""
        for delta in deltas:
            self._streams.get(delta.ticket, self._rest).append(delta)

    def take(self) -> list[Delta]:
        """Those that belong to no stream."""
        found, self._rest = self._rest, []
        return found
