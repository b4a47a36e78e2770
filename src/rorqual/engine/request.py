"""What goes into an engine and what comes out: the same for a local model and for a remote address."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rorqual.core.records import Message, Thinking
from rorqual.core.sampling import Grammar, SamplingParams
from rorqual.engine.embeds import Embeds

__all__ = ["Arrived", "Completion", "Generator", "Grammar", "Request", "SamplingParams"]


@dataclass(frozen=True)
class Request:
    """A conversation to continue. `prompt_ids`, where given, is the prompt, token for token, instead of `messages`.

    `tenant`: whose it is; tenants share neither cache nor turns. `priority`: of what waits, the highest runs first.
    `reuse`: whether the prefix cache may serve and keep it. `embeds`: rows that are read instead of the embeddings of the prompt's tokens
    at their positions.
    """

    messages: tuple[Message, ...] = ()
    params: SamplingParams = field(default_factory=SamplingParams)
    thinking: Thinking = "auto"
    prompt_ids: tuple[int, ...] | None = None
    tenant: str = ""
    priority: int = 0
    reuse: bool = True
    embeds: Embeds | None = None


@dataclass
class Completion:
    """One sample.

    `logprobs[i]` is the log-probability of `token_ids[i]` under the distribution it was drawn from (temperature, top-p and top-k
    included; at temperature 0, of the plain softmax). `experts` is [len(prompt_ids) + len(token_ids) - 1, moe layers, top-k], the experts
    that served each computed position, int8 or int16, -1 where none served; None for a dense or a remote model.
    `kept` is [len(token_ids), ceil(vocab / 8)] uint8, the tokens that top-k and top-p left for each draw, as `numpy.packbits` writes
    them; None where the engine does not record it.
    `top_logprobs[i]`: the likeliest tokens at that place, where they were asked for. `prompt_logprobs` and `prompt_top_logprobs`
    [len(prompt_ids)]: the same of the prompt, where `SamplingParams.prompt_logprobs` asks for it; None and [] for its first token.
    `usage` counts `prompt_tokens`, `completion_tokens` and, of a local engine, `prompt_cache_hit_tokens` and `prompt_cache_miss_tokens`.
    `error`: why this is no answer, where it is none: the grammar gave up in the middle, the answer does not match what its schema asks
    beyond the grammar, or a logit was not a number. `model`: what an address calls the model that answered.
    `text` is the reply after `</think>`, `reasoning` what stood before it (None: it did not think).
    Of a `RolloutEngine` it is sample number `sample` of request number `request`, drawn by weights of version `policy_version`.
    """

    prompt_ids: tuple[int, ...]
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]
    text: str
    reasoning: str | None
    experts: Any = None
    kept: Any = None
    top_logprobs: list[list[tuple[int, float]]] | None = None
    usage: dict[str, int] = field(default_factory=dict)
    error: str = ""
    prompt_logprobs: list[float | None] | None = None
    prompt_top_logprobs: list[list[tuple[int, float]]] | None = None
    model: str = ""
    request: int = 0
    sample: int = 0
    policy_version: int = 0


Arrived = Callable[[int, int, Completion], None]
"""Told of each sample as it ends: the number of its request, its own number, and the sample."""


class Generator(Protocol):
    """The interface that a local `Engine` and a `RemoteEngine` share."""

    def generate(
        self, requests: Sequence[Request], *, progress: Callable[[int, int], None] | None = None
    ) -> list[list[Completion]]:
        """For each request its `n` samples, in the order of the requests. `progress(done, total)` counts samples."""
