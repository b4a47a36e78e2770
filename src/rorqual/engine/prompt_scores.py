"""Log-probabilities of a prompt's own tokens, gathered during chunked prefill. No tensors here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

Likeliest = list[tuple[int, float]]


@dataclass
class PromptScores:
    """Of a prompt of `length` tokens: `logprobs[i]` is of token i + 1, and `best[i]` the `top` likeliest tokens there. They fill up from the
    left, and stay when the sequence is preempted.

    The prefix cache keeps keys and values, no logits: positions whose logits nobody has seen must be computed again (`reusable`).
    """

    length: int
    top: int
    logprobs: list[float] = field(default_factory=list)
    best: list[Likeliest] = field(default_factory=list)

    @property
    def reusable(self) -> int | None:
        """How many positions may come from the prefix cache: those whose logits were seen; None: all."""
        return None if len(self.logprobs) == self.length - 1 else len(self.logprobs)

    def wanted(self, start: int, stop: int) -> range:
        """Of positions start .. stop - 1, which are computed now, those whose logits are missing."""
        return range(max(start, len(self.logprobs)), min(stop, self.length - 1))

    def add(self, logprobs: list[float], best: list[Likeliest]) -> None:
        """What the next positions say."""
        self.logprobs += logprobs
        self.best += best

    @property
    def lost(self) -> bool:
        """Whether a logit was not a number."""
        return any(math.isnan(value) for value in self.logprobs)

    def tokens(self) -> list[float | None]:
        """[length]: a log-probability for each token of the prompt; None for the first, which nothing comes before."""
        return [None, *self.logprobs]

    def likeliest(self) -> list[Likeliest]:
        """[length]: the likeliest tokens at each place, none at the first."""
        return [[], *self.best]
