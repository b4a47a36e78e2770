"""How a family's replies are read: the form of its thoughts, and what comes after a thought.

A reply becomes parts, in order, which joined are the model's own text: reasoning, content, calls, and what only separates them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rorqual.data.chat.calls import WHITE, CallForm, Item
from rorqual.data.chat.marks import NAME_OF, raw

Begins = Literal["thought", "answer", "mark", "late"]
"""Where a reply begins: inside a thought that the prompt opened; in an answer that nothing turns into a thought; in a thought if `<think>`
comes first, else in an answer (`mark`), which a `</think>` may still turn into a thought (`late`)."""
Kind = Literal["reasoning", "content", "call", "mark"]
LATE = "late"
"""Name of a `</think>` that comes behind the calls that a thought ended with."""


@dataclass(frozen=True)
class Trim:
    """Characters that are dropped at the beginning and at the end of a text."""

    lead: str = ""
    trail: str = ""


@dataclass(frozen=True)
class ReplyForm:
    """What a format does with a reply.

    `trim`: characters around the reasoning. `answer` and `plain`: around a content after a thought, and without one. `indented`: white space
    may stand before `<think>`, which may also repeat the prompt's. `empty`: whether a thought that was closed at once is reasoning: `kept`
    as "", `none`, or kept where it was `marked` by `<think>` or the prompt. `halves`: the beginning of a thinking mark at the end of a reply
    that was cut off is dropped.
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
    """A piece of a reply's own text and where it goes; `mark` is a mark or white space that goes nowhere."""

    kind: Kind
    text: str


def half(text: str, mark: str) -> int:
    """Length of the longest beginning of a mark's name that a text ends with, but not all of it."""
    at = text.rfind("<")
    return len(text) - at if at >= 0 and NAME_OF[mark].startswith(text[at:]) and text[at:] != NAME_OF[mark] else 0


class Answer:
    """What comes after a thought: content and calls, item by item. Separators wait until it is clear what they separate.

    White space around calls is dropped, but for that between a text and a call, of which only what the family writes there itself is;
    so a text that is followed by a call can be written again as it was. A mark around calls that stands anywhere else is text.
    """

    def __init__(self, trim: Trim, calls: CallForm | None) -> None:
        self.calls: list[Item] = []
        self._trim, self._form = trim, calls
        self._gap = calls.gap if calls else WHITE
        self._waiting: list[Item] = []
        self._begun = self._after_call = False

    def feed(self, item: Item) -> list[Part]:
        """One more item; the parts that are certain by now. A thinking mark here is text, but for one that only ends calls."""
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
        """What is left when no item will come."""
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
        """What was waiting, as text; the marks that ended the calls before it are still dropped."""
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
