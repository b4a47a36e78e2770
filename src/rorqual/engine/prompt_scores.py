"""Log-probabilities of a prompt's own tokens, collected during chunked prefill. This module uses no tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

Likeliest = list[tuple[int, float]]


@dataclass
class PromptScores:
    """Log-probabilities of a prompt of `length` tokens.

    `logprobs[i]` belongs to token i + 1, and `best[i]` holds the `top` likeliest tokens there. Both lists fill from the
    left and survive a preemption. The prefix cache keeps keys and values but no logits, so a prefill may reuse only
    positions that are already scored (`reusable`).
    """

    length: int
    top: int
    logprobs: list[float] = field(default_factory=list)
    best: list[Likeliest] = field(default_factory=list)

    @property
    def reusable(self) -> int | None:
        """Number of positions that the prefix cache may serve: those already scored. None means all."""
        return None if len(self.logprobs) == self.length - 1 else len(self.logprobs)

    def wanted(self, start: int, stop: int) -> range:
        """Return the positions in [start, stop) that are not scored yet."""
        return range(max(start, len(self.logprobs)), min(stop, self.length - 1))

    def add(self, logprobs: list[float], best: list[Likeliest]) -> None:
        """Append the scores of the next positions."""
        self.logprobs += logprobs
        self.best += best

    @property
    def lost(self) -> bool:
        """Whether a log-probability is NaN."""
        return any(math.isnan(value) for value in self.logprobs)

    def tokens(self) -> list[float | None]:
        """Return the log-probability of each prompt token [length]. The first is None: it has no context."""
        return [None, *self.logprobs]

    def likeliest(self) -> list[Likeliest]:
        """Return the likeliest tokens at each prompt position [length]. The first list is empty."""
        return [[], *self.best]
