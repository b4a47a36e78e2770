"""A streaming lexer that splits a reply into text, thinking tags and tool calls in linear time.

The input of the lexer is marked text, in which special tokens are single characters (see `special_tokens.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from rorqual.core.records import Tool
from rorqual.data.chat.calls import (
    MAX_HEAD,
    JsonCallSyntax,
    LexerItem,
    State,
    ToolCallSyntax,
    call_end_length,
    item_kind_of_char,
)
from rorqual.data.chat.dsml import DSML, DsmlCallSyntax, DsmlItemParser
from rorqual.data.chat.special_tokens import END_THINK, NAME_OF, THINK

_CANDIDATE = re.compile("[{\ud800-\udfff]")
_DSML_CANDIDATE = re.compile(rf"[\ud800-\udfff]|<(?=/?(?:{DSML}|\Z))")
_IN_STRING = re.compile(f'["\\\\{THINK}{END_THINK}]')
_OUTSIDE = re.compile('["{}\\[\\]\ud800-\udfff]')


class Lexer:
    """A streaming lexer that converts the marked text of a reply (see `special_tokens.py`) to a list of `calls.LexerItem`.

    Text that may become a call is buffered until the call is complete or impossible. Text that cannot become a call is
    returned immediately.
    """

    def __init__(self, form: ToolCallSyntax | None, tools: Sequence[Tool]) -> None:
        self._form = form
        self._names = frozenset(tool.name for tool in tools)
        self._candidate = _DSML_CANDIDATE if isinstance(form, DsmlCallSyntax) else _CANDIDATE
        self._call: _PartialCall | DsmlItemParser | None = None
        self._at_start = True

    def feed(self, text: str, *, last: bool = False, cut: bool = False) -> list[LexerItem]:
        """Read the next chunk of text and return the lexical items that are now complete. `last` is true for the last chunk, and `cut`
        if the reply was truncated there."""
        items: list[LexerItem] = []
        pending = [text]
        while pending:
            text = pending.pop()
            if self._call is None:
                text = self._lex_plain_text(text, items)
            if self._call is None:
                continue
            state = self._call.feed(text)
            text = ""
            if state == "open" and last and not pending:
                state = self._call.close()
                state = "cut" if state == "broken" and cut and self._call.is_call_so_far() else state
            if state != "open":
                call, self._call = self._call, None
                pending.append(self._finish_call(call, state, items))
        return items

    def _lex_plain_text(self, text: str, items: list[LexerItem]) -> str:
        """Append to `items` the lexical items before the next possible tool call.

        If `text` contains the first character of a possible call, open the call and return the text after this
        character. If no call can begin in `text`, return "".
        """
        form, at, start = self._form, 0, 0
        while match := self._candidate.search(text, at):
            self._update_at_start(text[at : match.start()])
            at, char = match.start(), match.group()
            self._call = self._open_call(char)
            if self._call is not None:
                items += [LexerItem("text", text[start:at])] if start < at else []
                return text[at + 1 :]
            kind = item_kind_of_char(char, form)
            self._at_start = kind in ("think", "end")
            if kind != "text":
                items += [LexerItem("text", text[start:at])] if start < at else []
                items.append(LexerItem(kind, char))
                start = at + 1
            at += 1
        self._update_at_start(text[at:])
        items += [LexerItem("text", text[start:])] if start < len(text) else []
        return ""

    def _open_call(self, char: str) -> _PartialCall | DsmlItemParser | None:
        """Return the parser of a new call if a tool call may begin with `char`, else None."""
        form = self._form
        if isinstance(form, DsmlCallSyntax):
            return DsmlItemParser(self._names) if char == "<" else None
        if isinstance(form, JsonCallSyntax) and (char == form.begin or (form.bare and self._at_start and char == "{")):
            return _PartialCall(form, self._names, char)
        return None

    def _update_at_start(self, text: str) -> None:
        self._at_start = self._at_start and self._form is not None and not text.strip(self._form.separator_chars)

    def _finish_call(self, call: _PartialCall | DsmlItemParser, state: State, items: list[LexerItem]) -> str:
        """If the call is valid or cut off, append the call to `items`. If the call is invalid, append only its first character, as
        text. Return the text that remains to be read."""
        text = "".join(call.parts)
        if state == "complete" and (item := call.item()) is not None:
            items.append(item)
            self._at_start = True
            return text[len(item.text) :]
        if state == "cut":
            items.append(LexerItem("cut", text))
            return ""
        items.append(LexerItem("text", text[0]))
        self._at_start = False
        return text[1:]


class _PartialCall:
    """A tool call that is being read. A call consists of a head, a JSON object and a tail."""

    def __init__(self, form: JsonCallSyntax, names: frozenset[str], first: str) -> None:
        self.parts = [first]
        self._length = 0
        self._form, self._names = form, names
        self._head, self._json, self._tail = "", [""], ""
        self._phase: Literal["head", "json", "tail"] = "head"
        self._depth, self._in_string, self._offset = 0, False, 0
        if first != form.begin:
            self._phase, self._json, self._depth = "json", [first], 1

    def feed(self, text: str) -> State:
        self.parts.append(text)
        if self._phase == "head":
            brace = text.find("{")
            self._head += text if brace < 0 else text[:brace]
            if brace < 0 or not self._may_be_call_head():
                return "open" if self._may_be_call_head() else "broken"
            self._phase, text = "json", text[brace:]
        if self._phase == "json":
            end = self._scan_json_object(text)
            if end is None:
                self._json.append(text)
                return "open"
            if end < 0:
                return "broken"
            self._json.append(text[:end])
            self._phase, text = "tail", text[end:]
        self._tail += text
        return self._end_state()

    def close(self) -> State:
        """Return the state of the tool call at the end of the reply."""
        if self._phase != "tail":
            return "broken"
        return self._complete_call(call_end_length(self._tail, self._form))

    def is_call_so_far(self) -> bool:
        """Return whether an incomplete call may be a call. A call without a begin token must begin as `{"name": "NAME"`."""
        text = "".join("".join(self.parts).split())
        starts = [self._form.begin, *(f'{{"name":"{name}"' for name in self._names)]
        return any(start.startswith(text) or text.startswith(start) for start in starts)

    def item(self) -> LexerItem | None:
        """Return the complete tool call, or None if the name or the arguments of the call are not valid."""
        read = self._form.parse_call(self._head, "".join(self._json), self._names)
        return None if read is None else LexerItem("call", "".join(self.parts)[: self._length], *read)

    def _may_be_call_head(self) -> bool:
        head = self._head
        if len(head) > MAX_HEAD:
            return False
        if not self._form.inside:
            return not head.strip()
        return not any(char in NAME_OF and char not in self._form.inside for char in head)

    def _scan_json_object(self, text: str) -> int | None:
        """Return the index in `text` at which the JSON object ends, None if the object
        continues in the next chunk, or -1 if the object is invalid."""
        at, self._offset = self._offset, 0
        while match := (_IN_STRING if self._in_string else _OUTSIDE).search(text, at):
            at, char = match.end(), match.group()
            if char == "\\":
                at += 1
                self._offset = max(0, at - len(text))  # the escaped character may be in the next chunk
            elif char == '"':
                self._in_string = not self._in_string
            elif char in NAME_OF:
                return -1
            else:
                self._depth += 1 if char in "{[" else -1
                if not self._depth:
                    return at
        return None

    def _end_state(self) -> State:
        form, tail = self._form, self._tail
        if form.end is None:
            return self._complete_call(0)
        match = re.match(form.tail, tail)
        after = tail[match.end() if match else 0 :]
        if after[:1] in NAME_OF:
            return self._complete_call(call_end_length(tail, form))
        incomplete = NAME_OF[form.end].startswith(after) or ("`" in form.tail and "```".startswith(after))
        return "open" if incomplete else "broken"

    def _complete_call(self, tail: int | None) -> State:
        if tail is None:
            return "broken"
        self._length = sum(map(len, self.parts)) - len(self._tail) + tail
        return "complete"
