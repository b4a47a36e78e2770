"""How the replies of a family are read: its form of thinking, and the answer after it.

A reply becomes a list of parts: reasoning, content, calls, and separators. Joined in order they are the model's exact text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rorqual.data.chat.calls import WHITE, CallForm, Item
from rorqual.data.chat.special_tokens import NAME_OF, raw

Begins = Literal["thought", "answer", "mark", "late"]
"""How a reply begins:

- `thought`: inside thinking that the prompt opened.
- `answer`: in an answer, whatever follows.
- `mark`: in thinking if `<think>` comes first, else in an answer.
- `late`: like `mark`, but a later `</think>` turns the text before it into thinking.
"""
Kind = Literal["reasoning", "content", "call", "mark"]
LATE = "late"
"""Name of a `</think>` that follows calls at the end of thinking."""


@dataclass(frozen=True)
class Trim:
    """Characters to strip at the beginning and at the end of a text."""

    lead: str = ""
    trail: str = ""


@dataclass(frozen=True)
class ReplyForm:
    """How a format reads a reply.

    `trim` is stripped around the reasoning. `answer` and `plain` are stripped around content after thinking, and without
    thinking. `indented` allows white space before `<think>`, and a `<think>` that repeats the prompt's. `empty` says what an
    empty thinking block counts as: reasoning "" (`kept`), no reasoning (`none`), or reasoning "" only if `<think>` or the
    prompt opened it (`marked`). `halves` drops an incomplete thinking tag at the end of a reply that was cut off.
    """

    begins: Begins
    trim: str = ""
    answer: Trim = field(default_factory=Trim)
    plain: Trim = field(default_factory=Trim)
    indented: bool = False
    empty: Literal["kept", "none", "marked"] = "none"
    halves: bool = False


@dataclass(frozen=True)
class Part:
    """A piece of a reply's text and its field. `mark` is a special token or white space that belongs to no field."""

    kind: Kind
    text: str


def half(text: str, mark: str) -> int:
    """Return the length of the longest incomplete beginning of a tag's name at the end of `text`."""
    at = text.rfind("<")
    return len(text) - at if at >= 0 and NAME_OF[mark].startswith(text[at:]) and text[at:] != NAME_OF[mark] else 0


class Answer:
    """Reads the answer after thinking: content and calls, item by item. Separators wait until their neighbours are known.

    White space around calls is dropped. Between text and a call, only the white space that the family itself writes there is
    dropped, so that the text can be rendered again unchanged. A token around calls is text in any other place.
    """

    def __init__(self, trim: Trim, calls: CallForm | None) -> None:
        self.calls: list[Item] = []
        self._trim, self._form = trim, calls
        self._gap = calls.gap if calls else WHITE
        self._waiting: list[Item] = []
        self._begun = self._after_call = False

    def feed(self, item: Item) -> list[Part]:
        """Read one more item and return the parts that are certain.

        A thinking tag here is plain text, except one that only closes a block of tool calls.
        """
        if item.kind == "call":
            return self._call(item)
        if item.kind == "open":
            said = self._said() if self._has("open") else []
            self._waiting.append(item)
            return said
        if item.kind == "close" and self._after_call and not self._has("open", "close"):
            self._waiting.append(item)
            return []
        if item.kind == "end" and item.name == LATE:
            self._waiting.append(item)
            return []
        text = raw(item.text)
        core = text.rstrip(self._gap) if item.kind == "text" else text
        if not core:
            self._waiting.append(item)
            return []
        ahead = len(core) - len(core.lstrip(self._gap))
        self._waiting.append(Item("text", core[:ahead]))
        said = [*self._said(), *self._content(core[ahead:])]
        self._after_call = False
        self._waiting = [Item("text", text[len(core) :])]
        return said

    def finish(self) -> list[Part]:
        """Return the remaining parts after the last item."""
        if self._after_call and not self._has("open"):
            return self._dropped()
        if self._has("open"):
            return self._said()
        text = "".join(raw(item.text) for item in self._waiting)
        self._waiting = []
        kept = text.rstrip(self._trim.trail)
        return [*self._content(kept), Part("mark", text[len(kept) :])]

    def _call(self, item: Item) -> list[Part]:
        said: list[Part] = []
        if self._begun and not self._after_call:
            place = next((n for n, held in enumerate(self._waiting) if held.kind == "open"), len(self._waiting))
            text = "".join(raw(held.text) for held in self._waiting[:place])
            kept = (text.removesuffix(self._form.before) if self._form else text).rstrip(self._trim.trail)
            said = [*self._content(kept), Part("mark", text[len(kept) :])]
            self._waiting = self._waiting[place:]
        said += [*self._dropped(), Part("call", raw(item.text))]
        self.calls.append(item)
        self._after_call = True
        return said

    def _has(self, *kinds: str) -> bool:
        return any(item.kind in kinds for item in self._waiting)

    def _dropped(self) -> list[Part]:
        waiting, self._waiting = self._waiting, []
        return [Part("mark", raw(item.text)) for item in waiting]

    def _said(self) -> list[Part]:
        """Return the waiting items as text, without the tokens that ended the calls before them."""
        waiting, self._waiting = self._waiting, []
        said: list[Part] = []
        for item in waiting:
            ends = item.kind == "close" or (item.kind == "end" and item.name == LATE)
            said += [Part("mark", raw(item.text))] if ends else self._content(raw(item.text))
        return said

    def _content(self, text: str) -> list[Part]:
        kept = text if self._begun else text.lstrip(self._trim.lead)
        self._begun = self._begun or bool(kept)
        return [Part("mark", text[: len(text) - len(kept)]), Part("content", kept)]
