"""The protocol between the server and the engine process: one JSON object per line, over private pipes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rorqual.core.sampling import SamplingParams, from_json, to_json

LONGEST_LINE = 64 * 2**20
TENANT = "rollout-key"
"""The tenant of requests with the rollout key. It is not a valid name for other tenants."""


@dataclass(frozen=True)
class Placed:
    """Arguments of the engine process.

    `threads`: torch's threads. `rollout_dir`: folder for weights that a trainer sends, or empty. `engine`: keywords of
    `Engine`, the fields of `EngineConfig`.
    """

    run: str
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    rollout_dir: str = ""
    engine: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """A request to the engine: prompt ids and sampling parameters. `priority`: waiting requests run highest first."""

    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0


Score = tuple[float, list[tuple[int, float]]]
"""A prompt token's log-probability, and the likeliest ids at its position with theirs."""
SCORES = 2048
"""Maximum number of log-probabilities in one message, so that a long prompt does not block the event loop."""


@dataclass(frozen=True)
class ScoredPrompt:
    """Scores of the next tokens of a prompt, from its second token on. `prompt`: the prompt's index in its request."""

    prompt: int
    scores: list[Score]


@dataclass(frozen=True)
class Drawn:
    """A generated token of one sample.

    `reason`: `stop` or `length` at the sample's last token. `logprob`: its log-probability. `top`: the likeliest ids with
    theirs, if requested. `hit`: prompt tokens from the prefix cache.
    """

    sample: int
    token: int
    reason: str | None = None
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    hit: int = 0


@dataclass(frozen=True)
class Recorded:
    """What a rollout returns in addition to its tokens. It is sent before the last token.

    `policy_version`: version of the weights that generated it. `experts`, `kept`: arrays encoded by `array_of`, or None.
    """

    sample: int
    policy_version: int
    experts: dict[str, Any] | None
    kept: dict[str, Any] | None


@dataclass(frozen=True)
class Ready:
    """The engine is ready.

    `max_len`: maximum tokens of prompt and reply together. `weights_bytes`: maximum size of a file with its weights.
    """

    max_len: int
    vocab_size: int
    weights_bytes: int = 0


def line(kind: str, **fields: Any) -> bytes:
    """Serialize one message."""
    return json.dumps({"kind": kind, **fields}, separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True)
class PackedAsk:
    """A serialized `Ask`, with the fields that the server still needs. It takes a fifth of the memory of an `Ask`."""

    data: bytes
    n: int
    prompt_tokens: int


def pack(ask: Ask) -> PackedAsk:
    """Serialize an `Ask`. For a long prompt, do not call this in the event loop."""
    fields = {"prompt": ask.prompt, "params": to_json(ask.params), "priority": ask.priority}
    text = json.dumps({"kind": "submit", **fields}, separators=(",", ":"))
    return PackedAsk(text[:-1].encode(), ask.params.n, len(ask.prompt))


def submit(number: int, ask: PackedAsk, tenant: str) -> tuple[bytes, bytes]:
    """Return a `submit` message in two parts, so that the first, long one is not copied. Replies carry `number`."""
    return ask.data, f',"number":{number},"tenant":{json.dumps(tenant)}}}\n'.encode()


def cancel(number: int) -> bytes:
    """Return a message that cancels a request."""
    return line("cancel", number=number)


def update(file: str, version: int) -> bytes:
    """Return a message that replaces the weights. Earlier requests finish with the old weights; later ones wait."""
    return line("update", file=file, version=version)


def scored(number: int, logprobs: list[float], best: list[list[tuple[int, float]]], top: int) -> Iterator[bytes]:
    """Yield messages with the scores of a prompt's tokens, at most `SCORES` log-probabilities each."""
    step = max(1, SCORES // (1 + top))
    rows = list(zip(logprobs, best))
    for start in range(0, len(rows), step):
        yield line("scored", number=number, scores=rows[start : start + step])


def ask_of(message: dict[str, Any]) -> Ask:
    """Return the `Ask` in a `submit` message."""
    return Ask(tuple(message["prompt"]), from_json(message["params"]), message["priority"])
