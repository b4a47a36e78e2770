"""The results of a step, queued for `Engine.step` or for the stream of their request."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from rorqual.engine.prompt_scores import PromptScores
from rorqual.engine.request import Completion


@dataclass(frozen=True)
class Delta:
    """The result of one `Engine.step` for one sample: the new token and, after the last one, the whole completion."""

    request_id: int
    sample: int
    token: int
    completion: Completion | None = None
    """The whole sample, if `token` is its last."""
    logprob: float = 0.0
    """Log-probability of `token`."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at this position and their log-probabilities, if the request sets `top_logprobs`."""
    hit: int = 0
    """Prompt tokens that the prefix cache served."""
    scores: PromptScores | None = None
    """Log-probabilities of the prompt, if the request sets `prompt_logprobs`."""


class Outbox:
    """Deltas not delivered yet: one queue per stream, and one list for all other requests."""

    def __init__(self) -> None:
        self._streams: dict[int, deque[Delta]] = {}
        self._rest: list[Delta] = []

    def open(self, request_id: int) -> deque[Delta]:
        """Return the queue that receives the deltas of `request_id` from now on."""
        return self._streams.setdefault(request_id, deque())

    def close(self, request_id: int) -> None:
        """Drop the queue and the pending deltas of `request_id`."""
        self._streams.pop(request_id, None)
        self._rest = [delta for delta in self._rest if delta.request_id != request_id]

    def put(self, deltas: Iterable[Delta]) -> None:
        """Append each delta to the stream of its request, or to the list of the rest."""
        for delta in deltas:
            self._streams.get(delta.request_id, self._rest).append(delta)

    def take(self) -> list[Delta]:
        """Remove and return the deltas that belong to no stream."""
        found, self._rest = self._rest, []
        return found
