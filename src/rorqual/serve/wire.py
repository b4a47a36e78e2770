"""The messages between the server and the engine process. Each message is a JSON object on one line, sent over a pipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from rorqual.core.sampling import SamplingParams, params_from_json

LONGEST_LINE = 64 * 2**20
TENANT = "rollout-key"
"""Tenant name of requests with the rollout key. No other tenant can be called `TENANT`, because tenant names must not contain
a hyphen."""


@dataclass(frozen=True)
class EngineArguments:
    """Arguments of the engine process.

    `threads`: number of torch threads. `rollout_dir`: folder for weights that a trainer sends, or empty. `engine`:
    keyword arguments of `Engine`, which are fields of `EngineConfig`.
    """

    run: str
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    rollout_dir: str = ""
    engine: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineRequest:
    """A request to the engine: prompt ids and sampling parameters. `priority`: the engine starts requests with a higher
    `priority` first. `plain`: the grammar applies to the whole reply, also if the chat format has thinking. `adapter`: name of a
    loaded adapter, or empty for the base model."""

    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0
    plain: bool = False
    adapter: str = ""


Score = tuple[float, list[tuple[int, float]]]
"""(logprob, top): the log-probability of a prompt token, and the likeliest tokens at the token's position as (id,
log-probability)."""
SCORES = 2048
"""Maximum number of log-probabilities in one message. Without the limit `SCORES`, a long prompt would block the event
loop."""


@dataclass(frozen=True)
class ScoredPrompt:
    """Log-probabilities of consecutive prompt tokens. The first message of a prompt starts with the prompt's second token.

    `prompt`: the prompt's index in its request.
    """

    prompt: int
    scores: list[Score]


@dataclass(frozen=True)
class SampledToken:
    """A generated token of one sample.

    `reason`: `stop` or `length` at the sample's last token, else None. `logprob`: the token's log-probability. `top`: the
    likeliest token ids with their log-probabilities, if requested. `hit`: number of prompt tokens from the prefix cache.
    """

    sample: int
    token: int
    reason: str | None = None
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    hit: int = 0


@dataclass(frozen=True)
class RolloutRecord:
    """Data that a rollout returns in addition to its tokens.

    The engine sends a sample's `RolloutRecord` before the sample's last token.

    `policy_version`: version of the weights that generated the rollout. `experts`: routed experts. `kept`: the tokens
    that remained after top-p and top-k filtering. `encode_array` encodes `experts` and `kept`. An array that was not
    recorded is None.
    """

    sample: int
    policy_version: int
    experts: dict[str, Any] | None
    kept: dict[str, Any] | None


@dataclass(frozen=True)
class EngineLimits:
    """The engine's limits. The engine process sends `EngineLimits` in its `ready` message, when the model is loaded.

    `max_len`: maximum number of tokens in prompt and reply together. `weights_bytes`: maximum size of a weight update file.
    """

    max_len: int
    vocab_size: int
    weights_bytes: int = 0


def message_line(kind: str, **fields: Any) -> bytes:
    """Serialize a message as one line of JSON."""
    return json.dumps({"kind": kind, **fields}, separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True)
class PackedRequest:
    """A serialized `EngineRequest`, and the fields of the request that the server needs later. A `PackedRequest` takes a
    fifth of the memory of an `EngineRequest`."""

    data: bytes
    n: int
    prompt_tokens: int
    adapter: str = ""


def pack(ask: EngineRequest) -> PackedRequest:
    """Serialize an `EngineRequest`. Serializing a long prompt takes time, so do not call this function in the event loop."""
    data = message_line(
        "submit",
        prompt=ask.prompt,
        params=asdict(ask.params),
        priority=ask.priority,
        plain=ask.plain,
        adapter=ask.adapter,
    )
    return PackedRequest(data.removesuffix(b"}\n"), ask.params.n, len(ask.prompt), ask.adapter)


def submit_message(number: int, ask: PackedRequest, tenant: str) -> tuple[bytes, bytes]:
    """Return a `submit` message as two byte strings, to avoid copying the prompt, which may be long.

    `number`: identifies the request in the engine's replies.
    """
    return ask.data, f',"number":{number},"tenant":{json.dumps(tenant)}}}\n'.encode()


def score_messages(
    number: int, logprobs: list[float], best: list[list[tuple[int, float]]], top: int
) -> Iterator[bytes]:
    """Yield messages with the log-probabilities of a prompt's tokens. Each message has at most `SCORES` log-probabilities."""
    step = max(1, SCORES // (1 + top))
    rows = list(zip(logprobs, best))
    for start in range(0, len(rows), step):
        yield message_line("scored", number=number, scores=rows[start : start + step])


def parse_submit_message(message: dict[str, Any]) -> EngineRequest:
    """Parse a `submit` message and return the `EngineRequest` in the message."""
    params = params_from_json(message["params"])
    return EngineRequest(tuple(message["prompt"]), params, message["priority"], message["plain"], message["adapter"])
