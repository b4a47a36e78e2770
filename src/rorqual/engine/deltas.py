"""Queues that hold sampled tokens until `Engine.step` or `Engine.stream` returns the tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from rorqual.engine.prompt_scores import PromptScores
from rorqual.engine.request import Completion


@dataclass(frozen=True)
class Delta:
    """The token that one `Engine.step` sampled for one sequence. The `Delta` of a sample's last token also has the
    `completion`."""

    request_id: int
    sample: int
    token: int
    completion: Completion | None = None
    """The finished sample if `token` is the last token of the sample, and None for all earlier tokens."""
    logprob: float = 0.0
    """Log-probability of `token`."""
    top: tuple[tuple[int, float], ...] = ()
    """Most likely tokens at the position of `token`, with their log-probabilities, if the request sets `top_logprobs`."""
    hit: int = 0
    """Number of prompt tokens that were found in the prefix cache."""
    scores: PromptScores | None = None
    """Log-probabilities of the prompt tokens, if the request sets `prompt_logprobs`."""


class DeltaQueues:
    """Queues of undelivered deltas: one queue per open stream, and a shared list for all requests without a stream."""

    def __init__(self) -> None:
        self._streams: dict[int, deque[Delta]] = {}
        self._unstreamed: list[Delta] = []

    def open_stream(self, request_id: int) -> deque[Delta]:
        """Return the queue that receives the deltas of `request_id` from now on."""
        return self._streams.setdefault(request_id, deque())

    def drop_request(self, request_id: int) -> None:
        """Drop the queue and the pending deltas of `request_id`."""
        self._streams.pop(request_id, None)
        self._unstreamed = [delta for delta in self._unstreamed if delta.request_id != request_id]

    def put(self, deltas: Iterable[Delta]) -> None:
        """Append each delta to the queue of its request's stream, or to the shared list if the request has no
        stream."""
        for delta in deltas:
            self._streams.get(delta.request_id, self._unstreamed).append(delta)

    def take_unstreamed(self) -> list[Delta]:
        """Remove and return the deltas of all requests without a stream."""
        deltas, self._unstreamed = self._unstreamed, []
        return deltas
