"""What goes into an engine and what comes out: the same for a local model and for a remote address."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rorqual.core.records import Message, Thinking


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 are off. One `seed` gives one answer.

    Random numbers depend on (`seed`, number of the sample, position) alone: requests that should be independent of each
    other need seeds of their own. `ignore_eos`: go on to `max_tokens` (to measure speed).
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    n: int = 1
    ignore_eos: bool = False


@dataclass(frozen=True)
class Request:
    """A conversation to continue. `prompt_ids`, where given, is what is fed, token for token, instead of `messages`."""

    messages: tuple[Message, ...] = ()
    params: SamplingParams = SamplingParams()
    thinking: Thinking = "auto"
    prompt_ids: tuple[int, ...] | None = None


@dataclass
class Completion:
    """One sample.

    `logprobs[i]` is the log-probability of `token_ids[i]` under the distribution it was drawn from (temperature, top-p and top-k
    included; at temperature 0, of the plain softmax). `experts` is [len(prompt_ids) + len(token_ids) - 1, moe layers, top-k], the experts
    that served each position that was fed, uint8 or int16; None for a dense or a remote model.
    `kept` is [len(token_ids), ceil(vocab / 8)] uint8, the tokens that top-k and top-p left for each draw, as `numpy.packbits` writes
    them; None where the engine does not record it.
    `text` is the reply after `</think>`, `reasoning` what stood before it (None: it did not think).
    """

    prompt_ids: tuple[int, ...]
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]
    text: str
    reasoning: str | None
    experts: Any = None
    kept: Any = None
    usage: dict[str, int] = field(default_factory=dict)


class Generator(Protocol):
    """The interface that a local `Engine` and a `RemoteEngine` share."""

    def generate(
        self, requests: Sequence[Request], *, progress: Callable[[int, int], None] | None = None
    ) -> list[list[Completion]]:
        """For each request its `n` samples, in the order of the requests. `progress(done, total)` counts samples."""
