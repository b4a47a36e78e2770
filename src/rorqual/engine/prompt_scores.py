"""Prompt log-probabilities, collected chunk by chunk during prefill. This module does not import torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

Likeliest = list[tuple[int, float]]


@dataclass
class PromptScores:
    """Log-probabilities of a prompt of `length` tokens.

    `logprobs[i]` is the log-probability of prompt token i + 1, and `best[i]` lists the `top` most likely tokens at position i +
    1. `logprobs` and `best` are filled in prompt order, and are kept when the sequence is preempted.

    The prefix cache stores keys and values but no logits. A prefill may therefore reuse cached blocks only for positions that
    already have a log-probability (`n_reusable_positions`).
    """

    length: int
    top: int
    logprobs: list[float] = field(default_factory=list)
    best: list[Likeliest] = field(default_factory=list)

    @property
    def n_reusable_positions(self) -> int | None:
        """Number of leading prompt positions that may come from the prefix cache, because they already have a log-probability.
        If any number of positions may come from the prefix cache, `n_reusable_positions` is None.
        """
        return None if len(self.logprobs) == self.length - 1 else len(self.logprobs)

    def positions_to_score(self, start: int, stop: int) -> range:
        """Return the prompt positions in [start, stop) that still need a log-probability."""
        return range(max(start, len(self.logprobs)), min(stop, self.length - 1))

    def add(self, logprobs: list[float], best: list[Likeliest]) -> None:
        """Append the log-probabilities and most likely tokens of the next prompt positions."""
        self.logprobs += logprobs
        self.best += best

    @property
    def has_non_finite(self) -> bool:
        """Whether a log-probability of a prompt token is NaN."""
        return any(math.isnan(value) for value in self.logprobs)

    def logprobs_by_token(self) -> list[float | None]:
        """Return a list [length] with the log-probability of each prompt token. The log-probability of the first prompt token
        is None, because no token precedes the first prompt token."""
        return [None, *self.logprobs]

    def likeliest_by_position(self) -> list[Likeliest]:
        """Return a list [length] with the most likely tokens at each prompt position. The list of the first prompt position is
        empty, because no token precedes the first prompt token."""
        return [[], *self.best]
