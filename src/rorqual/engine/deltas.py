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

    request_id: int
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

    def open(self, request_id: int) -> deque[Delta]:
        """From now on the deltas of `request_id` are put there."""
        return self._streams.setdefault(request_id, deque())

    def close(self, request_id: int) -> None:
        """Nobody takes deltas of `request_id` any more."""
        self._streams.pop(request_id, None)
        self._rest = [delta for delta in self._rest if delta.request_id != request_id]

    def put(self, deltas: Iterable[Delta]) -> None:
        """Each to whom it belongs."""
        for delta in deltas:
            self._streams.get(delta.request_id, self._rest).append(delta)

    def take(self) -> list[Delta]:
        """Those that belong to no stream."""
        found, self._rest = self._rest, []
        return found
