"""A reply read while it is being written: reasoning, answer and calls apart, and nothing that a later token could take back.

The chat format's `parse` of the whole reply is the truth. A `Reader` gives, piece by piece, exactly that: what is not yet certain
waits. So the answer cannot depend on where a stream was cut. Each token is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rorqual.core.records import Message, Thinking, Tool
from rorqual.data.chat.base import ChatFormat
from rorqual.data.chat.lexer import Lexer
from rorqual.data.chat.marks import Unmarking
from rorqual.data.chat.reply import Part, ReplyForm
from rorqual.data.chat.thoughts import Thoughts


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
    """Reads one reply, token by token. The pieces joined are the fields of `message()`; a call comes whole, once it can be no other."""

    def __init__(self, chat: ChatFormat, thinking: Thinking, tools: Sequence[Tool], calls: str, *, plain: bool) -> None:
        self.ids: list[int] = []
        self.parts: list[Part] = []
        """What has been read so far; after `finish`, joined, the model's own text."""
        self._chat, self._thinking, self._tools, self._prefix, self._plain = chat, thinking, tools, calls, plain
        self._stops = frozenset(chat.stop_ids)
        self._ended = False
        form = ReplyForm("answer") if plain else chat.reply_form(thinking)
        written = None if plain or not tools else chat.call_form
        self._text = Unmarking(chat.reply_marks(written, plain=plain))
        self._lexer = Lexer(written, tools)
        self._thought = Thoughts(form, written)
        self._n_calls = 0

    @classmethod
    def of_chat(cls, chat: ChatFormat, thinking: Thinking, tools: Sequence[Tool] = (), calls: str = "call_") -> Reader:
        """For a reply to `chat.prompt(..., thinking, tools)`; the ids of its calls are `calls` and their number."""
        return cls(chat, thinking, tools, calls, plain=False)

    @classmethod
    def of_text(cls, chat: ChatFormat) -> Reader:
        """For plain text, which has no parts: it ends at the first token that ends a turn."""
        return cls(chat, "auto", (), "", plain=True)

    def feed(self, id_: int) -> Piece:
        """One more token; the text that is certain by now."""
        self.ids.append(id_)
        self._ended = self._ended or id_ in self._stops
        return Piece() if self._ended else self._read(self._text.feed(id_), last=False)

    def finish(self) -> Piece:
        """What is left, when no token will come."""
        return self._read(self._text.finish(), last=True)

    def message(self) -> Message:
        """The whole reply so far."""
        if self._plain:
            return Message(
                "assistant", "".join(part.text for part in self._chat.read(self.ids, "auto", plain=True).parts)
            )
        return self._chat.read(self.ids, self._thinking, self._tools).message(self._prefix)

    @property
    def thought(self) -> bool:
        """Whether the reply has reasoning."""
        return self.message().reasoning is not None

    def _read(self, text: str, *, last: bool) -> Piece:
        if not text and not last:
            return Piece()
        thought = self._thought
        thought.cut = last and not self._ended
        fresh = [part for item in self._lexer.feed(text, last=last) for part in thought.feed(item)]
        fresh += thought.finish() if last else []
        self.parts += [part for part in fresh if part.text]
        calls = thought.answer.calls[self._n_calls :]
        tools = tuple(
            ToolDelta(place, f"{self._prefix}{place}", call.name, call.arguments)
            for place, call in enumerate(calls, start=self._n_calls)
        )
        self._n_calls += len(calls)
        return Piece(_joined(fresh, "reasoning"), _joined(fresh, "content"), tools)


def _joined(parts: Sequence[Part], kind: str) -> str:
    return "".join(part.text for part in parts if part.kind == kind)
