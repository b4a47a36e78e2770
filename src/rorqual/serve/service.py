"""What every route needs: the model's name and tokenizer, the engine's bridge, keys and counters."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from rorqual.core.errors import RorqualError
from rorqual.core.records import Message, Thinking
from rorqual.data.chat import ChatFormat
from rorqual.serve.bridge import Bridge
from rorqual.serve.errors import ApiError, refuse
from rorqual.serve.keys import Keys
from rorqual.serve.metrics import Metrics
from rorqual.serve.schemas import ChatRequest, Sampling
from rorqual.serve.wire import Ask

MASK = 2**64 - 1
SEED_BITS = 63


@dataclass(frozen=True)
class Service:
    """Built once, at the start. `created` in seconds since 1970; `keep_alive`: seconds of silence before a comment is streamed."""

    name: str
    created: int
    chat: ChatFormat
    bridge: Bridge
    keys: Keys
    max_body: int
    keep_alive: float = 5.0
    metrics: Metrics = field(default_factory=Metrics)

    def prompt_of(self, request: ChatRequest) -> list[int]:
        """Ids of a conversation; what the chat format cannot write is refused."""
        return self._encoded([turn.message() for turn in request.messages], request.thinking)

    def _encoded(self, messages: Sequence[Message], thinking: Thinking) -> list[int]:
        try:
            return self.chat.prompt(messages, thinking)
        except RorqualError as error:
            raise refuse(f"{error.what}. {error.remedy}".strip(), "messages") from None

    def ask(self, request: Sampling, prompt: Sequence[int], param: str) -> Ask:
        """The request as the engine takes it; a wrong model, or a prompt that does not fit, is refused."""
        if request.model != self.name:
            raise ApiError(
                404, f"no model {request.model!r} here; it is {self.name!r}", param="model", code="model_not_found"
            )
        info = self.bridge.info
        if info is None:
            raise ApiError(503, "the engine is still loading", code="loading")
        if not prompt or max(prompt) >= info.vocab_size:
            what = f"ids go from 0 to {info.vocab_size - 1}" if prompt else "an empty prompt"
            raise refuse(what, param)
        if len(prompt) >= info.max_len:
            raise refuse(
                f"the prompt has {len(prompt)} tokens; the context of {info.max_len} must hold it and a reply",
                param,
                "context_length_exceeded",
            )
        seed = secrets.randbits(SEED_BITS) if request.seed is None else request.seed & MASK
        return Ask(
            prompt=tuple(prompt),
            max_tokens=request.limit,
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=request.top_p or 1.0,
            top_k=max(0, request.top_k or 0),
            seed=seed,
            n=request.n or 1,
        )
