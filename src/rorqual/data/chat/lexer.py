"""Splits a reply's marked text into text, tags and calls, chunk by chunk. Reading takes linear time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from rorqual.core.records import Tool
from rorqual.data.chat.calls import MAX_HEAD, CallForm, Item, ending, kind_of
from rorqual.data.chat.special_tokens import END_THINK, NAME_OF, THINK

_SOMETHING = re.compile("[{\ud800-\udfff]")
_IN_STRING = re.compile(f'["\\\\{THINK}{END_THINK}]')
_OUTSIDE = re.compile('["{}\\[\\]\ud800-\udfff]')

State = Literal["open", "whole", "broken"]


class Lexer:
    """Converts text to items. Text that may become a call waits until it is one or cannot be one; all other text is immediate."""

    def __init__(self, form: CallForm | None, tools: Sequence[Tool]) -> None:
        self._form = form
        self._names = frozenset(tool.name for tool in tools)
        self._call: _Call | None = None
        self._fresh = True

    def feed(self, text: str, *, last: bool = False) -> list[Item]:
        """Return the items that one more chunk makes certain. `last` says that no chunk follows."""
        items: list[Item] = []
        todo = [text]
        while todo:
            text = todo.pop()
            if self._call is None:
                text = self._plain(text, items)
            if self._call is None:
                continue
            state = self._call.feed(text)
            text = ""
            if state == "open" and last and not todo:
                state = self._call.close()
            if state != "open":
                call, self._call = self._call, None
                todo.append(self._settled(call, state, items))
        return items

    def _plain(self, text: str, items: list[Item]) -> str:
        """Append items up to the next possible start of a call. Open a call there and return the text after its begin token."""
        form, at, start = self._form, 0, 0
        while found := _SOMETHING.search(text, at):
            self._pass(text[at : found.start()])
            at, char = found.start(), found.group()
            if form is not None and (char == form.begin or (form.bare and self._fresh and char == "{")):
                items += [Item("text", text[start:at])] if start < at else []
                self._call = _Call(form, self._names, char)
                return text[at + 1 :]
            kind = kind_of(char, form)
            self._fresh = kind in ("think", "end")
            if kind != "text":
                items += [Item("text", text[start:at])] if start < at else []
                items.append(Item(kind, char))
                start = at + 1
            at += 1
        self._pass(text[at:])
        items += [Item("text", text[start:])] if start < len(text) else []
        return ""

    def _pass(self, text: str) -> None:
        self._fresh = self._fresh and self._form is not None and not text.strip(self._form.gap)

    def _settled(self, call: _Call, state: State, items: list[Item]) -> str:
        """Append the item of a complete call, or the first character as text. Return the text still to be read."""
        text = "".join(call.parts)
        if state == "whole" and (read := call.read()) is not None:
            items.append(Item("call", text[: call.length], *read))
            self._fresh = True
            return text[call.length :]
        items.append(Item("text", text[0]))
        self._fresh = False
        return text[1:]


class _Call:
    """A call being read, from its first character: head, JSON, tail."""

    def __init__(self, form: CallForm, names: frozenset[str], first: str) -> None:
        self.parts = [first]
        self.length = 0
        self._form, self._names = form, names
        self._head, self._json, self._tail = "", [""], ""
        self._phase: Literal["head", "json", "tail"] = "head"
        self._depth, self._in_string, self._skip = 0, False, 0
        if first != form.begin:
            self._phase, self._json, self._depth = "json", [first], 1

    def feed(self, text: str) -> State:
        self.parts.append(text)
        if self._phase == "head":
            brace = text.find("{")
            self._head += text if brace < 0 else text[:brace]
            if brace < 0 or not self._may_be_head():
                return "open" if self._may_be_head() else "broken"
            self._phase, text = "json", text[brace:]
        if self._phase == "json":
            end = self._scan(text)
            if end is None:
                self._json.append(text)
                return "open"
            if end < 0:
                return "broken"
            self._json.append(text[:end])
            self._phase, text = "tail", text[end:]
        self._tail += text
        return self._end()

    def close(self) -> State:
        """Return the state if no more text comes."""
        if self._phase != "tail":
            return "broken"
        return self._whole(ending(self._tail, self._form))

    def read(self) -> tuple[str, str] | None:
        return self._form.read(self._head, "".join(self._json), self._names)

    def _may_be_head(self) -> bool:
        head = self._head
        if len(head) > MAX_HEAD:
            return False
        if not self._form.inside:
            return not head.strip()
        return not any(char in NAME_OF and char not in self._form.inside for char in head)

    def _scan(self, text: str) -> int | None:
        """Return the end of the JSON object within a chunk: None if it is not there yet, -1 if the JSON is broken."""
        at, self._skip = self._skip, 0
        while found := (_IN_STRING if self._in_string else _OUTSIDE).search(text, at):
            at, char = found.end(), found.group()
            if char == "\\":
                at += 1
                self._skip = max(0, at - len(text))  # the escaped character may come with the next chunk
            elif char == '"':
                self._in_string = not self._in_string
            elif char in NAME_OF:
                return -1
            else:
                self._depth += 1 if char in "{[" else -1
                if not self._depth:
                    return at
        return None

    def _end(self) -> State:
        form, tail = self._form, self._tail
        if form.end is None:
            return self._whole(0)
        found = re.match(form.tail, tail)
        rest = tail[found.end() if found else 0 :]
        if rest[:1] in NAME_OF:
            return self._whole(ending(tail, form))
        waits = NAME_OF[form.end].startswith(rest) or ("`" in form.tail and "```".startswith(rest))
        return "open" if waits else "broken"

    def _whole(self, tail: int | None) -> State:
        if tail is None:
            return "broken"
        self.length = sum(map(len, self.parts)) - len(self._tail) + tail
        return "whole"
