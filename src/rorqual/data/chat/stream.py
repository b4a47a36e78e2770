"""The reader of replies: reasoning, answer and calls apart, while a reply is being written or once it is whole.

What a later token could take back waits, so the message cannot depend on where the ids were cut. Each token is read once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rorqual.core.records import Message, Tool, ToolCall
from rorqual.data.chat.calls import CallForm
from rorqual.data.chat.lexer import Lexer
from rorqual.data.chat.marks import Marks, Unmarking
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
    """Reads one reply by its ids. The pieces joined are the fields of `message()`; a call comes whole, once it can be no other.

    `ChatFormat.reader` makes one. `stops`: ids that end a turn; what follows the first of them is ignored. `prefix`: what the ids of calls
    begin with, before their numbers.
    """

    def __init__(
        self,
        marks: Marks,
        form: ReplyForm,
        calls: CallForm | None,
        tools: Sequence[Tool],
        stops: Iterable[int],
        prefix: str,
    ) -> None:
        self.ids: list[int] = []
        self.parts: list[Part] = []
        """What has been read so far; after `finish`, joined, the model's own text."""
        self._stops, self._prefix = frozenset(stops), prefix
        self._ended = False
        self._text = Unmarking(marks)
        self._lexer = Lexer(calls, tools)
        self._thought = Thoughts(form, calls)
        self._calls: list[ToolCall] = []

    def feed(self, *ids: int) -> Piece:
        """The next tokens, one or more; the text that is certain by now."""
        self.ids += ids
        text = ""
        for id_ in ids:
            self._ended = self._ended or id_ in self._stops
            if self._ended:
                break
            text += self._text.feed(id_)
        return self._read(text, last=False)

    def finish(self) -> Piece:
        """What is left, when no token will come."""
        return self._read(self._text.finish(), last=True)

    def message(self) -> Message:
        """What has been read so far; after `finish`, the whole reply."""
        content = _joined(self.parts, "content")
        reasoning = _joined(self.parts, "reasoning") if self.thought else None
        return Message("assistant", content, reasoning, tuple(self._calls))

    @property
    def thought(self) -> bool:
        """Whether the reply has reasoning."""
        return self._thought.thought

    @property
    def tentative(self) -> str:
        """Text that waits, as it is the answer unless a `</think>` still makes it reasoning."""
        return self._thought.tentative

    def _read(self, text: str, *, last: bool) -> Piece:
        if not text and not last:
            return Piece()
        thought = self._thought
        thought.cut = last and not self._ended
        fresh = [part for item in self._lexer.feed(text, last=last) for part in thought.feed(item)]
        fresh += thought.finish() if last else []
        self.parts += [part for part in fresh if part.text]
        first = len(self._calls)
        self._calls += [
            ToolCall(f"{self._prefix}{place}", call.name, call.arguments)
            for place, call in enumerate(thought.answer.calls[first:], start=first)
        ]
        tools = tuple(
            ToolDelta(place, call.id, call.name, call.arguments)
            for place, call in enumerate(self._calls[first:], start=first)
        )
        return Piece(_joined(fresh, "reasoning"), _joined(fresh, "content"), tools)


def _joined(parts: Sequence[Part], kind: str) -> str:
    return "".join(part.text for part in parts if part.kind == kind)
