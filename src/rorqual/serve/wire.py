"""What the server and the engine's process say to each other: one JSON object a line, over pipes that nobody else holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rorqual.core.sampling import SamplingParams, from_json, to_json

LONGEST_LINE = 64 * 2**20
TENANT = "rollout-key"
"""Whose the requests with the key for rollouts are. It is no name that a tenant may have."""


@dataclass(frozen=True)
class Placed:
    """How the engine is set up, as `Engine` takes it. `max_len` 0: the model's context.

    `cache_dir`: the folder of the prefix cache on disk, none where it is empty; `cache_bytes`: memory of keys and values, 0 for the
    engine's own choice. `rollout_dir`: where weights come from that a trainer sends, nowhere where it is empty; `record_kept`: whether rollouts
    bring the sets that top-p and top-k left.
    """

    run: str
    device: str = "cpu"
    dtype: str = "float32"
    slots: int = 16
    threads: int = 1
    max_len: int = 0
    cache_dir: str = ""
    cache_bytes: int = 0
    disk_bytes: int = 4 << 30
    backend: str = "torch-invariant"
    step_tokens: int = 256
    rollout_dir: str = ""
    record_kept: bool = False


@dataclass(frozen=True)
class Ask:
    """A request: ids to continue, and how to sample. `priority`: of what waits, the highest runs first."""

    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0


Score = tuple[float, list[tuple[int, float]]]
"""Of a token of a prompt: its log-probability, and the likeliest ids there with theirs."""
SCORES = 2048
"""Log-probabilities in one message: no part of a long prompt's holds up the loop."""


@dataclass(frozen=True)
class ScoredPrompt:
    """The next tokens of a prompt, from its second one on. `prompt`: the number of the prompt within its request."""

    prompt: int
    scores: list[Score]


@dataclass(frozen=True)
class Drawn:
    """A token of one sample; `reason` where it was the last: `stop` or `length`.

    `logprob`: its log-probability; `top`: the likeliest ids with theirs, where they were asked for; `hit`: ids of the
    prompt that the prefix cache served.
    """

    sample: int
    token: int
    reason: str | None = None
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    hit: int = 0


@dataclass(frozen=True)
class Recorded:
    """What a rollout brings beside its tokens; it comes before the last of them.

    `policy_version`: of the weights that drew it. `experts`, `kept`: arrays as `array_of` writes them, or None.
    """

    sample: int
    policy_version: int
    experts: dict[str, Any] | None
    kept: dict[str, Any] | None


@dataclass(frozen=True)
class Ready:
    """The engine is up: the longest sequence, prompt and reply, the size of the vocabulary, and the most bytes that a file of its weights may
    have."""

    max_len: int
    vocab_size: int
    weights_bytes: int = 0


def line(kind: str, **fields: Any) -> bytes:
    """One message."""
    return json.dumps({"kind": kind, **fields}, separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True)
class PackedAsk:
    """An `Ask` as it is sent: its JSON, and what the server still needs to know of it. It takes a fifth of the memory."""

    data: bytes
    n: int
    prompt_tokens: int


def pack(ask: Ask) -> PackedAsk:
    """Write an ask down; for a long prompt not in the event loop."""
    fields = {"prompt": ask.prompt, "params": to_json(ask.params), "priority": ask.priority}
    text = json.dumps({"kind": "submit", **fields}, separators=(",", ":"))
    return PackedAsk(text[:-1].encode(), ask.params.n, len(ask.prompt))


def submit(number: int, ask: PackedAsk, tenant: str) -> tuple[bytes, bytes]:
    """Ask for samples; what comes back carries `number`. One line, in two parts: the first is not copied."""
    return ask.data, f',"number":{number},"tenant":{json.dumps(tenant)}}}\n'.encode()


def cancel(number: int) -> bytes:
    """Forget a request."""
    return line("cancel", number=number)


def update(file: str, version: int) -> bytes:
    """Sample with the weights of a file from now on. Requests before this one end with the old ones; those after it wait."""
    return line("update", file=file, version=version)


def scored(number: int, logprobs: list[float], best: list[list[tuple[int, float]]], top: int) -> Iterator[bytes]:
    """What the engine says of a prompt's tokens, in messages of `SCORES` numbers at most."""
    step = max(1, SCORES // (1 + top))
    rows = list(zip(logprobs, best))
    for start in range(0, len(rows), step):
        yield line("scored", number=number, scores=rows[start : start + step])


def ask_of(message: dict[str, Any]) -> Ask:
    """The `Ask` in a `submit`."""
    return Ask(tuple(message["prompt"]), from_json(message["params"]), message["priority"])
