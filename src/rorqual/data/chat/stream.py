"""A streaming parser of replies. The parser splits the token ids of a reply into reasoning, content and tool calls.

Text is buffered until it is certain whether the text is reasoning, content or a tool call. The parsed message therefore does
not depend on how the token ids are split into calls of `feed`. Each token of the reply is decoded only once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rorqual.core.records import Message, Tool, ToolCall
from rorqual.data.chat.calls import ToolCallSyntax
from rorqual.data.chat.lexer import Lexer
from rorqual.data.chat.reply import ReplyPart, ReplyRules
from rorqual.data.chat.special_tokens import IncrementalDecoder, ReplySpecialTokens
from rorqual.data.chat.thinking_parser import ThinkingParser
from rorqual.data.tokenizer import REPLACEMENT


@dataclass(frozen=True)
class ToolDelta:
    """The text that was added to a tool call. `index` is the index of the call. Only the first delta of a call has `id` and
    `name`."""

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True)
class ReplyDelta:
    """The text that one call of `ReplyReader.feed` or `ReplyReader.finish` adds to a reply."""

    reasoning: str = ""
    content: str = ""
    tools: tuple[ToolDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.tools)


class ReplyReader:
    """A streaming parser of one reply. `ChatFormat.reader` creates a reader.

    Joining the texts of all deltas gives the fields of `message()`. A tool call is returned when the call is complete. `stops`
    are the token ids that end a turn; tokens after the first stop token are ignored. The id of a tool call is `prefix` followed
    by the index of the call.
    """

    def __init__(
        self,
        marks: ReplySpecialTokens,
        form: ReplyRules,
        calls: ToolCallSyntax | None,
        tools: Sequence[Tool],
        stops: Iterable[int],
        prefix: str,
    ) -> None:
        self.ids: list[int] = []
        self.parts: list[ReplyPart] = []
        """The parts of the reply so far. After `finish`, the joined texts of the parts equal the text that the model generated."""
        self._stops, self._prefix = frozenset(stops), prefix
        self._ended = False
        self._marks, self._halves, self._has_calls = marks, form.halves, calls is not None
        self._text = IncrementalDecoder(marks)
        self._lexer = Lexer(calls, tools)
        self._thought = ThinkingParser(form, calls)
        self._calls: list[ToolCall] = []

    def feed(self, *ids: int) -> ReplyDelta:
        """Read the next token ids.

        Return the text that later tokens cannot reclassify, split into reasoning, content and tool calls.
        """
        self.ids += ids
        text = ""
        for id_ in ids:
            self._ended = self._ended or id_ in self._stops
            if self._ended:
                break
            text += self._text.feed(id_)
        return self._parse_text(text, last=False)

    def finish(self) -> ReplyDelta:
        """Return the buffered text of the reply, after the last token id was read.

        Of a reply without a stop token, which is truncated, a call that is cut off is dropped, and an incomplete tag or character that
        may belong to a call. With `ReplyRules.halves`, an incomplete tag that ends the thinking is dropped.
        """
        text = self._text.finish()
        partial = self._incomplete_tag(text)
        piece = self._parse_text(text.removesuffix(partial), last=True)
        self.parts += [ReplyPart("mark", partial)] if partial else []
        return piece

    def message(self) -> Message:
        """Return the message parsed so far. After `finish`, the returned message is complete."""
        content = _join_texts(self.parts, "content")
        reasoning = _join_texts(self.parts, "reasoning") if self.has_reasoning else None
        return Message("assistant", content, reasoning, tuple(self._calls))

    @property
    def has_reasoning(self) -> bool:
        """Whether the reply read so far has reasoning."""
        return self._thought.has_reasoning

    @property
    def tentative_content(self) -> str:
        """The buffered text that is content unless a later `</think>` turns it into reasoning."""
        return self._thought.tentative_content

    def content_at_end(self) -> str:
        """Return the content that `finish` would add to a reply without tools. The reader can still be fed."""
        text = self._text.buffered_text()
        return self._thought.content_at_end(text.removesuffix(self._incomplete_tag(text)))

    def _incomplete_tag(self, text: str) -> str:
        """Return the incomplete tag or character at the end of a truncated reply that `finish` drops, or ""."""
        drops = not self._ended and (self._has_calls or (self._halves and not self._thought.in_answer))
        whole = text.rstrip(REPLACEMENT)  # half a character may belong to a tag
        return text[len(whole) - self._marks.unfinished_name_length(whole) :] if drops else ""

    def _parse_text(self, text: str, *, last: bool) -> ReplyDelta:
        if not text and not last:
            return ReplyDelta()
        thought = self._thought
        parts = [part for item in self._lexer.feed(text, last=last, cut=not self._ended) for part in thought.feed(item)]
        parts += thought.finish() if last else []
        self.parts += [part for part in parts if part.text]
        first = len(self._calls)
        self._calls += [
            ToolCall(f"{self._prefix}{place}", call.name, call.arguments)
            for place, call in enumerate(thought.answer.calls[first:], start=first)
        ]
        tools = tuple(
            ToolDelta(place, call.id, call.name, call.arguments)
            for place, call in enumerate(self._calls[first:], start=first)
        )
        return ReplyDelta(_join_texts(parts, "reasoning"), _join_texts(parts, "content"), tools)


def _join_texts(parts: Sequence[ReplyPart], kind: str) -> str:
    return "".join(part.text for part in parts if part.kind == kind)
