"""Rules for parsing the replies of a model family, and the parser of the answer after the thinking.

A reply is parsed to a list of parts: reasoning, content, calls and separators. The texts of a reply's parts, joined in order,
equal the text that the model generated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rorqual.data.chat.calls import WHITE, LexerItem, ToolCallSyntax
from rorqual.data.chat.special_tokens import restore_token_names

Begins = Literal["thought", "answer", "mark", "late"]
"""How a reply begins, with thinking or with the answer:

- `thought`: the reply begins inside thinking that the prompt opened.
- `answer`: the whole reply is an answer.
- `mark`: the reply begins with thinking if the first token is `<think>`, else with an answer.
- `late`: like `mark`, but a later `</think>` turns the text before it into thinking.
"""
Kind = Literal["reasoning", "content", "call", "cut", "mark"]
LATE = "late"
"""Name of the item for a `</think>` that comes directly after tool calls."""


@dataclass(frozen=True)
class StripChars:
    """The characters to strip at the beginning (`lead`) and at the end (`trail`) of a text."""

    lead: str = ""
    trail: str = ""


@dataclass(frozen=True)
class ReplyRules:
    """The rules by which a format parses a reply.

    - `begins`: how the reply begins, with thinking or with the answer.
    - `trim`: characters to strip around the reasoning.
    - `answer`, `plain`: characters to strip around the content after thinking, and around the content of a reply without
      thinking.
    - `indented`: accept white space before `<think>`, and accept a `<think>`
      that repeats the `<think>` at the end of the prompt.
    - `empty`: how to parse an empty thinking block. With `kept`, the reasoning of an empty block is "". With `none`, the reply
      has no reasoning. `marked` means `kept` if `<think>` or the prompt opened the block, and otherwise `none`.
    - `halves`: drop an incomplete thinking tag at the end of a truncated reply.
    """

    begins: Begins
    trim: str = ""
    answer: StripChars = field(default_factory=StripChars)
    plain: StripChars = field(default_factory=StripChars)
    indented: bool = False
    empty: Literal["kept", "none", "marked"] = "none"
    halves: bool = False


@dataclass(frozen=True)
class ReplyPart:
    """A part of a reply. A part of kind `mark` is a special token or white space that belongs to no field of the message, and a part
    of kind `cut` is a call that the end of a truncated reply cut off."""

    kind: Kind
    text: str


class AnswerParser:
    """A streaming parser of the answer after the thinking. The parser splits items into content and calls.

    White space next to calls is not part of the content. Before the first call, the parser removes only the white space that
    models of the family write before a call. Rendering the parsed message therefore gives the text of the reply. If the
    delimiters of a call section enclose no complete call, the section is plain text. Separators are buffered until the next
    item shows whether the separators belong to the content or to a call.
    """

    def __init__(self, trim: StripChars, calls: ToolCallSyntax | None) -> None:
        self.calls: list[LexerItem] = []
        self._trim, self._form = trim, calls
        self._gap = calls.separator_chars if calls else WHITE
        self._pending: list[LexerItem] = []
        self._begun = self._after_call = False

    def feed(self, item: LexerItem) -> list[ReplyPart]:
        """Read the next item and return the parts of the reply that are complete.

        A `</think>` directly after tool calls ends thinking. Any other thinking tag in the answer is plain text.
        """
        if item.kind in ("call", "cut"):
            return self._feed_call(item)
        if item.kind == "open":
            parts = self._flush_as_content() if self._has_pending("open") else []
            self._pending.append(item)
            return parts
        if item.kind == "close" and self._after_call and not self._has_pending("open", "close"):
            self._pending.append(item)
            return []
        if item.kind == "end" and item.name == LATE:
            self._pending.append(item)
            return []
        text = restore_token_names(item.text)
        core = text.rstrip(self._gap) if item.kind == "text" else text
        if not core:
            self._pending.append(item)
            return []
        ahead = len(core) - len(core.lstrip(self._gap))
        self._pending.append(LexerItem("text", core[:ahead]))
        parts = [*self._flush_as_content(), *self._content_parts(core[ahead:])]
        self._after_call = False
        self._pending = [LexerItem("text", text[len(core) :])]
        return parts

    def finish(self) -> list[ReplyPart]:
        """Return the buffered parts of the reply, after the last item was read."""
        if self._after_call and not self._has_pending("open"):
            return self._flush_as_separators()
        if self._has_pending("open"):
            return self._feed_call(LexerItem("cut", ""))
        text = "".join(restore_token_names(item.text) for item in self._pending)
        self._pending = []
        content = text.rstrip(self._trim.trail)
        return [*self._content_parts(content), ReplyPart("mark", text[len(content) :])]

    def content_at_end(self, text: str) -> str:
        """Return the content that the buffered items and `text` add to a reply without tools that ends here."""
        text = "".join(item.text for item in self._pending) + text
        text = restore_token_names(text if self._begun else text.lstrip(self._trim.lead))
        return text.rstrip(self._trim.trail)

    def _feed_call(self, item: LexerItem) -> list[ReplyPart]:
        parts: list[ReplyPart] = []
        if self._begun and not self._after_call:
            place = next((n for n, pending in enumerate(self._pending) if pending.kind == "open"), len(self._pending))
            text = "".join(restore_token_names(pending.text) for pending in self._pending[:place])
            content = (text.removesuffix(self._form.before) if self._form else text).rstrip(self._trim.trail)
            parts = [*self._content_parts(content), ReplyPart("mark", text[len(content) :])]
            self._pending = self._pending[place:]
        kind: Kind = "call" if item.kind == "call" else "cut"
        parts += [*self._flush_as_separators(), ReplyPart(kind, restore_token_names(item.text))]
        self.calls += [item] if kind == "call" else []
        self._after_call = True
        return parts

    def _has_pending(self, *kinds: str) -> bool:
        return any(item.kind in kinds for item in self._pending)

    def _flush_as_separators(self) -> list[ReplyPart]:
        """Return the buffered items as parts of kind `mark`."""
        pending, self._pending = self._pending, []
        return [ReplyPart("mark", restore_token_names(item.text)) for item in pending]

    def _flush_as_content(self) -> list[ReplyPart]:
        """Return the buffered items as content.

        Tokens that close the preceding calls, and white space before these tokens, are returned as parts of kind `mark`.
        """
        pending, self._pending = self._pending, []
        parts: list[ReplyPart] = []
        closed = max((number for number, item in enumerate(pending) if item.kind == "close"), default=-1)
        for number, item in enumerate(pending):
            closes = number <= closed or (item.kind == "end" and item.name == LATE)
            parts += (
                [ReplyPart("mark", restore_token_names(item.text))]
                if closes
                else self._content_parts(restore_token_names(item.text))
            )
        return parts

    def _content_parts(self, text: str) -> list[ReplyPart]:
        content = text if self._begun else text.lstrip(self._trim.lead)
        self._begun = self._begun or bool(content)
        return [ReplyPart("mark", text[: len(text) - len(content)]), ReplyPart("content", content)]
