"""Requests and completions of local models and remote endpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from rorqual.core.errors import DataError, suggest_name
from rorqual.core.records import Message, Thinking
from rorqual.core.sampling import Grammar, SamplingParams
from rorqual.engine.embeds import Embeds

__all__ = ["Arrived", "Completion", "Generator", "Grammar", "Request", "SamplingParams"]


@dataclass(frozen=True)
class Request:
    """A conversation or a tokenized prompt to continue."""

    messages: tuple[Message, ...] = ()
    params: SamplingParams = field(default_factory=SamplingParams)
    thinking: Thinking = "auto"
    prompt_ids: tuple[int, ...] | None = None
    """Token ids of the prompt. If `prompt_ids` is set, `messages` is not used."""
    tenant: str = ""
    """Owner of the request. Tenants share no cached blocks, and scheduling is fair between tenants."""
    priority: int = 0
    """Priority of the request. The queued request with the highest priority runs first."""
    reuse: bool = True
    """Whether the request may read blocks from the prefix cache and store its own blocks in the prefix cache."""
    adapter: str = ""
    """Name of the adapter that answers (`Engine.load_adapter`), or "" for the base model."""
    embeds: Embeds | None = None
    """Embeddings that replace the embeddings of placeholder tokens in the prompt."""

    def __post_init__(self) -> None:
        if self.thinking not in get_args(Thinking):
            raise DataError(
                f"unknown thinking mode {self.thinking!r}",
                where="Request",
                remedy=suggest_name(str(self.thinking), get_args(Thinking)),
            )
        if wrong := [message for message in self.messages if not isinstance(message, Message)]:
            raise DataError(
                f"a message is a {type(wrong[0]).__name__}, not a Message",
                where="Request",
                remedy="Write Message('user', 'Hello'), not {'role': 'user', 'content': 'Hello'}.",
            )


@dataclass
class Completion:
    """One sample of a request."""

    prompt_ids: tuple[int, ...]
    token_ids: list[int]
    logprobs: list[float]
    """`logprobs[i]` is the log-probability of `token_ids[i]` in the distribution after temperature, top-k and top-p. At
    temperature 0, `logprobs[i]` is computed at temperature 1, without top-k and top-p."""
    finish_reason: Literal["stop", "length"]
    text: str
    """The part of the reply after `</think>`."""
    reasoning: str | None
    """The part of the reply before `</think>`. If the model did not think, `reasoning` is None."""
    experts: Any = None
    """Expert ids of each computed position [len(prompt_ids) + len(token_ids) - 1, MoE layers, top-k], int8 or int16. The expert
    id -1 means that the router chose no expert. `experts` is None for a dense or remote model."""
    kept: Any = None
    """The tokens that remained after top-k and top-p filtering at each reply position, as a uint8 array [len(token_ids),
    ceil(vocab / 8)] in the format of `numpy.packbits`. `kept` is None unless `EngineConfig.record_kept` is set."""
    top_logprobs: list[list[tuple[int, float]]] | None = None
    """Most likely tokens at each reply position, if `SamplingParams.top_logprobs` is set."""
    usage: dict[str, int] = field(default_factory=dict)
    """Token counts `prompt_tokens` and `completion_tokens`. A local engine adds the token counts `prompt_cache_hit_tokens` and
    `prompt_cache_miss_tokens`."""
    error: str = ""
    """The reason why the sample is invalid, or "" if the sample is valid. A sample is invalid if the grammar reached a dead
    end, the reply violates a part of the schema that the grammar cannot enforce, or a logit is NaN or infinite."""
    prompt_logprobs: list[float | None] | None = None
    """Log-probability of each prompt token, if `SamplingParams.prompt_logprobs` is set. The log-probability of the first prompt
    token is None."""
    prompt_top_logprobs: list[list[tuple[int, float]]] | None = None
    """Most likely tokens at each prompt position, if `SamplingParams.prompt_logprobs` is above 0. The list of the first prompt
    position is empty."""
    model: str = ""
    """Model name that a remote endpoint reports, or "" if no endpoint reports a model name."""
    request: int = 0
    """Index of the request, set by a `RolloutEngine`."""
    sample: int = 0
    """Index of the sample in its request, set by a `RolloutEngine`."""
    policy_version: int = 0
    """Version of the weights that generated the sample, set by a `RolloutEngine`."""


Arrived = Callable[[int, int, Completion], None]
"""Callback for each finished sample, called with the index of the request, the index of the sample and the
completion."""


class Generator(Protocol):
    """The interface that `Engine` and `RemoteEngine` share."""

    def generate(
        self, requests: Sequence[Request], /, *, progress: Callable[[int, int], None] | None = None
    ) -> list[list[Completion]]:
        """Return the `n` samples of each request, in the order of the requests. `progress(done, total)` gets the number of
        finished samples and the number of all samples."""
