"""The parser that assigns the items of a reply to reasoning, content and tool calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from rorqual.data.chat.calls import WHITE, LexerItem, ToolCallSyntax
from rorqual.data.chat.reply import LATE, AnswerParser, ReplyPart, ReplyRules
from rorqual.data.chat.special_tokens import END_THINK, NAME_OF, restore_token_names

State = Literal["start", "late", "in", "out"]


class ThinkingParser:
    """A streaming parser that separates thinking from the answer.

    The states are `start` (before the first text), `in` (inside thinking), `out` (in the answer) and `late` (in text that a
    later `</think>` would turn into thinking). Calls inside thinking are buffered. If text follows the buffered calls, the
    calls become part of the reasoning. If the reply ends after the buffered calls, with or without a `</think>`, the calls are
    returned as tool calls.
    """

    def __init__(self, form: ReplyRules, calls: ToolCallSyntax | None) -> None:
        self.answer = AnswerParser(form.plain, calls)
        self._form, self._calls = form, calls
        self._gap = calls.separator_chars if calls else WHITE
        self._state: State = "start"
        if form.begins == "answer":
            self._state = "out"
        elif form.begins == "thought" and not form.indented:
            self._state = "in"
        self._pending: list[LexerItem] = []
        self._after_end: list[LexerItem] | None = None  # items after a `</think>` that follows buffered calls
        self._trailing = ""  # white space at the end of the thinking, which is dropped if thinking ends
        self._opened = form.begins == "thought"  # whether the prompt or a `<think>` opened thinking
        self._begun = self._closed = False

    @property
    def has_reasoning(self) -> bool:
        """Whether the reply has reasoning, which may be empty."""
        if not self._closed:
            return self._state == "in"
        empty_counts = self._form.empty == "kept" or (self._form.empty == "marked" and self._opened)
        return self._begun or empty_counts

    @property
    def in_answer(self) -> bool:
        """Whether the answer of the reply has begun. A thinking tag in the answer is plain text."""
        return self._state == "out"

    @property
    def tentative_content(self) -> str:
        """The buffered text that is content if no `</think>` follows."""
        if self._state != "late":
            return ""
        trim = self._form.plain
        return restore_token_names(_joined_text(self._pending)).lstrip(trim.lead).rstrip(trim.trail)

    def content_at_end(self, text: str) -> str:
        """Return the content that the items so far and `text` add to a reply without tools that ends here."""
        if self._state == "in" or (self._state == "start" and self._form.begins == "thought"):
            return ""
        return self.answer.content_at_end(_joined_text(self._pending) + text)

    def feed(self, item: LexerItem) -> list[ReplyPart]:
        """Read the next item. Return the parts that later items cannot reclassify."""
        match self._state:
            case "start":
                return self._feed_at_start(item)
            case "late":
                return self._feed_undecided(item)
            case "in":
                return self._feed_in_thinking(item) if self._after_end is None else self._feed_after_end_tag(item)
            case "out":
                return self.answer.feed(item)

    def finish(self) -> list[ReplyPart]:
        """Return the buffered parts of the reply, after the last item was read."""
        pending, self._pending = self._pending, []
        if self._state == "start" and self._form.begins == "thought":
            self._state = "in"
            return [*self._feed_all(pending), *self.finish()]
        if self._state in ("start", "late"):
            self._state = "out"
            return [*self._feed_all(pending), *self.answer.finish()]
        if self._state == "out":
            return self.answer.finish()
        if not _has_call(pending):
            return [*self._reasoning_parts(_joined_text(pending)), *self._drop_trailing()]
        late = [] if self._after_end is None else [LexerItem("end", END_THINK, LATE), *self._after_end]
        return [*self._end_thinking(), *self._feed_all([*pending, *late]), *self.answer.finish()]

    def _feed_at_start(self, item: LexerItem) -> list[ReplyPart]:
        form = self._form
        if item.kind == "text" and form.indented and not item.text.strip(WHITE):
            self._pending.append(item)
            return []
        pending, self._pending = self._pending, []
        if item.kind == "think":
            self._state, self._opened = "in", True
            return [ReplyPart("mark", restore_token_names(_joined_text([*pending, item])))]
        self._state = "in" if form.begins == "thought" else "late" if form.begins == "late" else "out"
        return self._feed_all([*pending, item])

    def _feed_undecided(self, item: LexerItem) -> list[ReplyPart]:
        if item.kind != "end":
            self._pending.append(item)
            return []
        pending, self._pending = self._pending, []
        self._state = "in"
        return self._feed_all([*pending, item])

    def _feed_in_thinking(self, item: LexerItem) -> list[ReplyPart]:
        has_calls = _has_call(self._pending)
        if item.kind == "end":
            if has_calls:
                self._after_end = []
                return []
            return [*self._flush_as_reasoning(), *self._end_thinking(), ReplyPart("mark", NAME_OF[END_THINK])]
        separates = item.kind == "text" and not item.text.strip(self._gap)
        if item.kind == "call" or (self._pending and separates) or (has_calls and item.kind in ("open", "close")):
            self._pending.append(item)
            return []
        parts = self._flush_as_reasoning()
        if item.kind == "open":
            self._pending.append(item)
            return parts
        return [*parts, *self._reasoning_parts(item.text)]

    def _feed_after_end_tag(self, item: LexerItem) -> list[ReplyPart]:
        """Read the next item after a `</think>` that followed buffered calls."""
        behind = self._after_end or []
        if item.kind == "text" and not item.text.strip(self._gap):
            self._after_end = [*behind, item]
            return []
        parts = [*self._flush_as_reasoning(), *self._end_thinking(), ReplyPart("mark", NAME_OF[END_THINK])]
        return [*parts, *self._feed_all([*behind, item])]

    def _end_thinking(self) -> list[ReplyPart]:
        self._state, self._after_end, self._closed = "out", None, True
        self.answer = AnswerParser(self._form.answer, self._calls)
        return self._drop_trailing()

    def _flush_as_reasoning(self) -> list[ReplyPart]:
        """Return the buffered items as reasoning."""
        pending, self._pending = self._pending, []
        return self._reasoning_parts(_joined_text(pending))

    def _reasoning_parts(self, text: str) -> list[ReplyPart]:
        """Return `text` as reasoning. White space at the end of the text is buffered."""
        if not text:
            return []
        trim = self._form.trim
        text = self._trailing + restore_token_names(text)
        complete = text.rstrip(trim)
        self._trailing = text[len(complete) :]
        if self._begun or not complete:
            return [ReplyPart("reasoning", complete)]
        reasoning = complete.lstrip(trim)
        self._begun = True
        return [ReplyPart("mark", complete[: len(complete) - len(reasoning)]), ReplyPart("reasoning", reasoning)]

    def _drop_trailing(self) -> list[ReplyPart]:
        text, self._trailing = self._trailing, ""
        return [ReplyPart("mark", text)]

    def _feed_all(self, items: Sequence[LexerItem]) -> list[ReplyPart]:
        feed: Callable[[LexerItem], list[ReplyPart]] = self.feed
        return [part for item in items for part in feed(item)]


def _has_call(items: Sequence[LexerItem]) -> bool:
    return any(item.kind == "call" for item in items)


def _joined_text(items: Sequence[LexerItem]) -> str:
    return "".join(item.text for item in items)
