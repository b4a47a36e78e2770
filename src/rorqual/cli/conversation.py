"""A conversation in a terminal: replies as they are drawn, and a history that is kept within the context."""

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
"""Tokens that a prompt must leave for the reply."""


class ChatSettings(Placement):
    """How replies are drawn; `seed` moves on by one with each turn."""

    thinking: Thinking = "auto"
    system: str = ""
    temperature: NonNegative = 0.0
    max_tokens: Count = 1024
    seed: Seed = 0
    threads: Natural = 0


class Screen(Protocol):
    """Where a reply goes."""

    def reasoning(self, text: str) -> None: ...

    def answer(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...


def pieces(ids: Iterable[int], chat: ChatFormat, thinking: Thinking) -> Iterator[tuple[bool, str]]:
    """(is reasoning, new text) as tokens come: the pieces of each kind, joined, are what `chat.parse` makes of all of them.

    Half a character waits for its other half. Where a later token turns what was shown as answer into reasoning (a model
    that closes a thought it never opened), all of the reasoning is given again as such.
    """
    reader, early = chat.reader(thinking), ""  # `early`: what was shown as answer before it was certain
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
    """One conversation with a run's model."""

    def __init__(self, engine: Engine, settings: ChatSettings) -> None:
        self.engine, self.settings = engine, settings
        self.history: list[Message] = []
        self.turns = 0

    def say(self, text: str, screen: Screen) -> Message:
        """Put `text` to the model, show the reply as it comes, keep both. A message longer than the context is a `DataError`."""
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
            screen.note(f"cut off after {len(drawn)} tokens")
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
        """Without the oldest exchanges, as many as the context makes necessary; said, never silent."""
        kept, room = messages, self.engine.max_len - ROOM
        while len(kept) > 1 and len(self.engine.chat.prompt(self._opening(kept), self.settings.thinking)) > room:
            kept = kept[2:]
        if len(kept) < len(messages):
            screen.note(
                f"forgot the oldest {(len(messages) - len(kept)) // 2} exchanges: the context is {room + ROOM} tokens"
            )
        return kept
