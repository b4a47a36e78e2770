"""What the server and the engine's process say to each other: one JSON object a line, over pipes that nobody else holds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

LONGEST_LINE = 64 * 2**20


@dataclass(frozen=True)
class Placed:
    """How the engine is set up, as `Engine.from_run` takes it. `max_len` 0: the model's context, but at most `LONGEST`."""

    run: str
    device: str = "cpu"
    dtype: str = "float32"
    slots: int = 16
    threads: int = 1
    max_len: int = 0


@dataclass(frozen=True)
class Ask:
    """A request: ids to continue, and how to sample, as `SamplingParams` has it."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    n: int


@dataclass(frozen=True)
class Drawn:
    """A token of one sample; `reason` where it was the last: `stop` or `length`."""

    sample: int
    token: int
    reason: str | None = None


@dataclass(frozen=True)
class Ready:
    """The engine is up: the longest sequence, prompt and reply, and the size of the vocabulary."""

    max_len: int
    vocab_size: int


def line(kind: str, **fields: Any) -> bytes:
    """One message."""
    return json.dumps({"kind": kind, **fields}, separators=(",", ":")).encode() + b"\n"


def submit(number: int, ask: Ask) -> bytes:
    """Ask for samples; what comes back carries `number`."""
    return line("submit", number=number, **asdict(ask))


def cancel(number: int) -> bytes:
    """Forget a request."""
    return line("cancel", number=number)


def ask_of(message: dict[str, Any]) -> Ask:
    """The `Ask` in a `submit`."""
    fields = {key: value for key, value in message.items() if key not in ("kind", "number")}
    return Ask(**fields | {"prompt": tuple(fields["prompt"])})
