"""What goes into an engine and what comes out: the same for a local model and for a remote address."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rorqual.core.records import Message, Thinking
from rorqual.engine.embeds import Embeds


@dataclass(frozen=True)
class Grammar:
    """What a reply must match. `source` is a JSON schema, a regular expression (of the whole reply) or a JSON list of choices, by `kind`;
    of kind "json" any JSON object matches, and `source` is empty. Of kind "calls" it is `{"tools": [{"name": ..., "parameters": schema}],
    "many": bool}`: the reply calls one of these functions or, with `many`, one or more, as the chat format writes calls; with
    `"answer": schema` beside these it is calls, or a JSON text that this schema allows."""

    kind: Literal["json_schema", "regex", "choice", "json", "calls"]
    source: str = ""


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 are off. One `seed` gives one answer.

    Cuts are made in this order: top_k, top_p, min_p, as in transformers. `min_p_first`: min_p, top_k, top_p, as in vLLM, so that `top_p` is a
    share of what min_p left.
    Random numbers depend on (`seed`, number of the sample, position) alone: requests that should be independent of each
    other need seeds of their own. `ignore_eos`: go on to `max_tokens` (to measure speed).
    `repetition_penalty` divides positive and multiplies negative logits of tokens that the prompt or the reply holds (CTRL,
    Keskar et al. 2019, section 4.1); `presence_penalty` and `frequency_penalty` are subtracted from the logits of the reply's
    tokens, once or for each time (OpenAI's API); `logit_bias` is added to logits: (token, bias).
    `stop`: texts before which the reply's text ends; `stop_token_ids`: further tokens that end it. What was drawn of either is
    kept in `token_ids`. `min_tokens`: neither the model's own end, nor a stop token, nor a stop string ends the reply before it has so many
    tokens, a thought's included. A grammar goes first: where it allows nothing but the end, the reply ends.
    `top_logprobs`: how many of the likeliest tokens, with their log-probabilities, come with each token. `prompt_logprobs`: the prompt's own
    tokens get log-probabilities, too, with so many likeliest ones; None: they get none. They are of the plain softmax, whatever else is
    asked for, and the prompt is then computed as a whole: what the prefix cache has of it has no logits.
    `grammar`: what the reply (what follows `</think>`, where it thinks) must match.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    n: int = 1
    ignore_eos: bool = False
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    top_logprobs: int = 0
    grammar: Grammar | None = None
    min_tokens: int = 0
    min_p_first: bool = False
    prompt_logprobs: int | None = None


@dataclass(frozen=True)
class Request:
    """A conversation to continue. `prompt_ids`, where given, is the prompt, token for token, instead of `messages`.

    `tenant`: whose it is; tenants share neither cache nor turns. `priority`: of what waits, the highest runs first.
    `reuse`: whether the prefix cache may serve and keep it. `embeds`: rows that are read instead of the embeddings of the prompt's tokens
    at their positions.
    """

    messages: tuple[Message, ...] = ()
    params: SamplingParams = SamplingParams()
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
