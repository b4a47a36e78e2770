"""A chat in the terminal: streams replies, and drops old turns that no longer fit in the context."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Protocol

from rorqual.cli.settings import Placement
from rorqual.core.config import Count, Natural, NonNegative, Seed
from rorqual.core.records import Message, Thinking
from rorqual.data.chat import ChatFormat
from rorqual.engine.engine import Engine
from rorqual.engine.request import Request, SamplingParams

ROOM = 8
"""Tokens of the context that are reserved for the reply."""


class ChatSettings(Placement):
    """Settings of `rorqual chat`. Each turn adds one to `seed`."""

    thinking: Thinking = "auto"
    system: str = ""
    temperature: NonNegative = 0.0
    max_tokens: Count = 1024
    seed: Seed = 0
    threads: Natural = 0


class Screen(Protocol):
    """Where a reply is displayed."""

    def reasoning(self, text: str) -> None: ...

    def answer(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...


def pieces(ids: Iterable[int], chat: ChatFormat, thinking: Thinking) -> Iterator[tuple[bool, str]]:
    """Yield (is reasoning, new text) as tokens arrive.

    The joined pieces of each kind equal the result of `chat.parse` on all tokens. Bytes of an incomplete UTF-8 character
    are held back. If a model closes a reasoning section that it never opened, text already yielded as answer was
    reasoning. It is then yielded again, as reasoning.
    """
    reader, early = chat.reader(thinking), ""  # `early`: text already yielded as answer while still tentative
    for id_ in chain(ids, (None,)):
        piece = reader.finish() if id_ is None else reader.feed(id_)
        if piece.reasoning:
            early = ""
            yield True, piece.reasoning
        fresh = piece.content.removeprefix(early)
        if waiting := reader.tentative:
            fresh = waiting.removeprefix(early)
        early = waiting
        if fresh:
            yield False, fresh


class Conversation:
    """One conversation with a model."""

    def __init__(self, engine: Engine, settings: ChatSettings) -> None:
        self.engine, self.settings = engine, settings
        self.history: list[Message] = []
        self.turns = 0

    def say(self, text: str, screen: Screen) -> Message:
        """Send `text` to the model, stream the reply to `screen`, and add both to the history.

        Raises DataError if the message alone is longer than the context.
        """
        asked = self._fitting([*self.history, Message("user", text)], screen)
        params = SamplingParams(
            max_tokens=self.settings.max_tokens,
            temperature=self.settings.temperature,
            seed=self.settings.seed + self.turns,
        )
        request = Request(self._opening(asked), params, self.settings.thinking)
        drawn: list[int] = []
        for is_reasoning, piece in pieces(self._tokens(request, drawn), self.engine.chat, self.settings.thinking):
            (screen.reasoning if is_reasoning else screen.answer)(piece)
        reply = self.engine.chat.parse(drawn, self.settings.thinking)
        if drawn and drawn[-1] not in self.engine.chat.stop_ids:
            screen.note(f"reply cut off after {len(drawn)} tokens")
        self.history = [*asked, reply]
        self.turns += 1
        return reply

    def _tokens(self, request: Request, drawn: list[int]) -> Iterator[int]:
        for delta in self.engine.stream(request):
            drawn.append(delta.token)
            yield delta.token

    def _opening(self, messages: list[Message]) -> tuple[Message, ...]:
        system = [Message("system", self.settings.system)] if self.settings.system else []
        return (*system, *messages)

    def _fitting(self, messages: list[Message], screen: Screen) -> list[Message]:
        """Return `messages` without the oldest exchanges that do not fit in the context. Dropped ones are noted on screen."""
        kept, room = messages, self.engine.max_len - ROOM
        while len(kept) > 1 and len(self.engine.chat.prompt(self._opening(kept), self.settings.thinking)) > room:
            kept = kept[2:]
        if len(kept) < len(messages):
            screen.note(
                f"dropped the oldest {(len(messages) - len(kept)) // 2} exchanges to fit the context of {room + ROOM} tokens"
            )
        return kept
