"""Converts a reply's items to parts: reasoning, content and calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from rorqual.data.chat.calls import WHITE, CallForm, Item
from rorqual.data.chat.reply import LATE, Answer, Part, ReplyForm, half
from rorqual.data.chat.special_tokens import END_THINK, NAME_OF, THINK, raw

State = Literal["start", "late", "in", "out"]


class Thoughts:
    """Tracks the position in a reply.

    `start` is its beginning, `in` is inside thinking, `out` is after it. In `late`, a `</think>` would still turn the text
    into thinking. Calls at the end of thinking wait: text after them makes them part of the thinking.
    """

    def __init__(self, form: ReplyForm, calls: CallForm | None) -> None:
        self.answer = Answer(form.plain, calls)
        self.cut = False
        """Set before the last items of a reply that ended without a stop token. An incomplete tag at its end is dropped."""
        self._form, self._calls = form, calls
        self._gap = calls.gap if calls else WHITE
        self._state: State = "start"
        if form.begins == "answer":
            self._state = "out"
        elif form.begins == "thought" and not form.indented:
            self._state = "in"
        self._held: list[Item] = []
        self._behind: list[Item] | None = None  # items after `</think>`, while calls are held
        self._edge = self._half = ""  # end of the thinking so far, which may have to be dropped
        self._opened = form.begins == "thought"  # by the prompt or a `<think>`
        self._begun = self._closed = False

    @property
    def thought(self) -> bool:
        """Whether the reply has reasoning, possibly empty."""
        if not self._closed:
            return self._state == "in"
        kept = self._form.empty == "kept" or (self._form.empty == "marked" and self._opened)
        return self._begun or kept

    @property
    def tentative(self) -> str:
        """Text that is content if no `</think>` follows."""
        if self._state != "late":
            return ""
        trim = self._form.plain
        return raw(_text(self._held)).lstrip(trim.lead).rstrip(trim.trail)

    def feed(self, item: Item) -> list[Part]:
        """Read one more item and return the parts that are certain."""
        match self._state:
            case "start":
                return self._start(item)
            case "late":
                return self._late(item)
            case "in":
                return self._inside(item) if self._behind is None else self._after(item)
            case "out":
                return self.answer.feed(item)

    def finish(self) -> list[Part]:
        """Return the remaining parts after the last item."""
        held, self._held = self._held, []
        if self._state == "start" and self._form.begins == "thought":
            self._state = "in"
            return [*self._each(held), *self.finish()]
        if self._state in ("start", "late"):
            self._state = "out"
            return [*self._each(held), *self.answer.finish()]
        if self._state == "out":
            return self.answer.finish()
        if not _has_call(held):
            return [*self._say(_text(held)), *self._drop_edge()]
        late = [] if self._behind is None else [Item("end", END_THINK, LATE), *self._behind]
        return [*self._leave(), *self._each([*held, *late]), *self.answer.finish()]

    def _start(self, item: Item) -> list[Part]:
        form = self._form
        if item.kind == "text" and form.indented and not item.text.strip(WHITE):
            self._held.append(item)
            return []
        held, self._held = self._held, []
        if item.kind == "think":
            self._state, self._opened = "in", True
            return [Part("mark", raw(_text([*held, item])))]
        if form.halves and self.cut and item.kind == "text" and half(item.text, THINK) == len(item.text):
            return [Part("mark", item.text)]
        self._state = "in" if form.begins == "thought" else "late" if form.begins == "late" else "out"
        return self._each([*held, item])

    def _late(self, item: Item) -> list[Part]:
        if item.kind != "end":
            self._held.append(item)
            return []
        held, self._held = self._held, []
        self._state = "in"
        return self._each([*held, item])

    def _inside(self, item: Item) -> list[Part]:
        called = _has_call(self._held)
        if item.kind == "end":
            if called:
                self._behind = []
                return []
            return [*self._release(), *self._say_half(), *self._leave(), Part("mark", NAME_OF[END_THINK])]
        separates = item.kind == "text" and not item.text.strip(self._gap)
        if item.kind == "call" or (self._held and separates) or (called and item.kind in ("open", "close")):
            self._held.append(item)
            return []
        said = self._release()
        if item.kind == "open":
            self._held.append(item)
            return said
        return [*said, *self._say(item.text)]

    def _after(self, item: Item) -> list[Part]:
        """Read an item after a `</think>` that followed calls."""
        behind = self._behind or []
        if item.kind == "text" and not item.text.strip(self._gap):
            self._behind = [*behind, item]
            return []
        said = [*self._release(), *self._leave(), Part("mark", NAME_OF[END_THINK])]
        return [*said, *self._each([*behind, item])]

    def _leave(self) -> list[Part]:
        self._state, self._behind, self._closed = "out", None, True
        self.answer = Answer(self._form.answer, self._calls)
        return self._drop_edge()

    def _release(self) -> list[Part]:
        """Return the held items as part of the thinking."""
        held, self._held = self._held, []
        return self._say(_text(held))

    def _say(self, text: str) -> list[Part]:
        """Add text to the thinking."""
        if not text:
            return []
        trim = self._form.trim
        text = self._edge + self._half + raw(text)
        waits = half(text, END_THINK) if self._form.halves and self.cut else 0
        kept = text[: len(text) - waits].rstrip(trim)
        self._edge, self._half = text[len(kept) : len(text) - waits], text[len(text) - waits :]
        if self._begun or not kept:
            return [Part("reasoning", kept)]
        said = kept.lstrip(trim)
        self._begun = True
        return [Part("mark", kept[: len(kept) - len(said)]), Part("reasoning", said)]

    def _say_half(self) -> list[Part]:
        text, self._half = self._half, ""
        if not text:
            return []
        text, self._edge, self._begun = self._edge + text, "", True
        return [Part("reasoning", text)]

    def _drop_edge(self) -> list[Part]:
        text, self._edge, self._half = self._edge + self._half, "", ""
        return [Part("mark", text)]

    def _each(self, items: Sequence[Item]) -> list[Part]:
        feed: Callable[[Item], list[Part]] = self.feed
        return [part for item in items for part in feed(item)]


def _has_call(items: Sequence[Item]) -> bool:
    return any(item.kind == "call" for item in items)


def _text(items: Sequence[Item]) -> str:
    return "".join(item.text for item in items)
