"""A reply read while it is being written: reasoning and answer apart, and nothing that a later token could take back.

The chat format's `parse` of the whole reply is the truth. A `Reader` gives, piece by piece, exactly that: what is not yet certain
waits. So the answer cannot depend on where a stream was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rorqual.core.records import Message, Thinking, Tool
from rorqual.data.chat import ChatFormat

THINK, END_THINK = "<think>", "</think>"
UNFINISHED = "\ufffd"
"""What the decoder gives for bytes that are not yet a whole character."""
PIECES = 512
"""A long reply is read again each time it has grown by one part in so many, so that all readings together cost a multiple of its length."""


@dataclass(frozen=True)
class ToolDelta:
    """New text of a tool call: the call's number in the reply; `id` and `name` come once, with its first delta."""

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True)
class Piece:
    """New text of a reply."""

    reasoning: str = ""
    content: str = ""
    tools: tuple[ToolDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.tools)


class Reader:
    """Reads one reply. `parse` takes its ids so far; `close` are ids that spell `</think>`, to ask what one would change."""

    def __init__(self, parse: Callable[[Sequence[int]], Message], close: Sequence[int] = ()) -> None:
        self.ids: list[int] = []
        self._parse, self._close = parse, list(close)
        self._read_at = 0
        self._settled = not self._close
        self._reasoning = self._content = ""

    @classmethod
    def of_chat(cls, chat: ChatFormat, thinking: Thinking, tools: Sequence[Tool] = (), calls: str = "call_") -> Reader:
        """For a reply to `chat.prompt(..., thinking, tools)`; the ids of its calls are `calls` and their number."""
        tokenizer = chat.tokenizer
        known = END_THINK in tokenizer.special_names
        close = [tokenizer.special(END_THINK)] if known else tokenizer.encode(END_THINK)
        return cls(lambda ids: chat.parse(ids, thinking, tools), close)

    @classmethod
    def of_text(cls, chat: ChatFormat) -> Reader:
        """For plain text, which has no parts: it ends at the first token that ends a turn."""
        stops = frozenset(chat.stop_ids)

        def parse(ids: Sequence[int]) -> Message:
            end = next((place for place, id_ in enumerate(ids) if id_ in stops), len(ids))
            return Message("assistant", chat.tokenizer.decode(ids[:end], specials=True))

        return cls(parse)

    def feed(self, id_: int) -> Piece:
        """One more token; the text that is certain by now."""
        self.ids.append(id_)
        if len(self.ids) - self._read_at < max(1, len(self.ids) // PIECES):
            return Piece()
        self._read_at = len(self.ids)
        message = self._parse(self.ids)
        reasoning = _certain(_without_start(message.reasoning or "", END_THINK))
        if THINK.startswith(reasoning.strip()):  # a mark that repeats the prompt's, which a template's format drops
            reasoning = ""
        content = _certain(message.content)
        if content and not self._settled:
            self._settled = message.reasoning is not None or self._stays(message.content)
        if not (content and self._settled):
            return self._grown(reasoning, "")
        return self._grown(message.reasoning or "", content)  # the thought is over, and as long as it will ever be

    def finish(self) -> Piece:
        """What is left, when no token will come."""
        message = self._parse(self.ids)
        return self._grown(message.reasoning or "", message.content)

    def message(self) -> Message:
        """The whole reply so far."""
        return self._parse(self.ids)

    @property
    def thought(self) -> bool:
        """Whether the reply has reasoning."""
        return self._parse(self.ids).reasoning is not None

    def _stays(self, content: str) -> bool:
        """Whether this would be the answer even if a `</think>` came now: some formats make reasoning of what stood before it."""
        closed = self._parse([*self.ids, *self._close])
        return closed.reasoning is None and closed.content.startswith(_certain(content))

    def _grown(self, reasoning: str, content: str) -> Piece:
        piece = Piece(_new(self._reasoning, reasoning), _new(self._content, content))
        self._reasoning += piece.reasoning
        self._content += piece.content
        return piece


def _new(shown: str, text: str) -> str:
    return text[len(shown) :] if text.startswith(shown) else ""


def _certain(text: str) -> str:
    """Without white space at the end, which a format may strip, and without half a character."""
    while (shorter := text.rstrip().rstrip(UNFINISHED)) != text:
        text = shorter
    return text


def _without_start(text: str, mark: str) -> str:
    """`text` without a beginning of `mark` at its end."""
    length = next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)
    return text[: len(text) - length]


class Stops:
    """Cuts text before the first of some strings. Of two that overlap, the one that ends first counts: so it would in a stream."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.hit = False

    def feed(self, text: str, *, last: bool = False) -> str:
        """What of the text may be shown by now; after a hit, nothing."""
        if self.hit or not self._stops:
            return "" if self.hit else text
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.hit = True
            return self._held[: min(found)[1]]
        waits = 0 if last else max(self._overlap(stop) for stop in self._stops)
        shown, self._held = self._held[: len(self._held) - waits], self._held[len(self._held) - waits :]
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of what is held that may become `stop`."""
        most = min(len(stop) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if self._held.endswith(stop[:n])), 0)
