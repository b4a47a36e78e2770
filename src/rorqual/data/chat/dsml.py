"""DSML, the tool-call syntax of DeepSeek-V3.2. Each argument has its own tags: strings are plain text, other values are JSON.

    <｜DSML｜function_calls>
    <｜DSML｜invoke name="get_weather">
    <｜DSML｜parameter name="city" string="true">Zürich</｜DSML｜parameter>
    <｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>
    </｜DSML｜invoke>
    </｜DSML｜function_calls>

If the tokenizer has the special token `｜DSML｜`, only this token marks a tag, and a string may contain the text of tags.
Without this special token, tags are recognised by their text, as in the published parser. A string that spells a tag then ends
its parameter or makes the call invalid.

Source: `encoding/encoding_dsv32.py` of deepseek-ai/DeepSeek-V3.2 (see `deepseek_v32.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rorqual.data.chat.calls import (
    MAX_HEAD,
    WHITE,
    LexerItem,
    State,
    ToolCallSyntax,
    ToolCallTemplate,
    is_json,
    json_object,
)
from rorqual.data.chat.special_tokens import CHARS
from rorqual.data.chat.tools import template_json

DSML = CHARS["｜DSML｜"]
OPEN, CLOSE = f"<{DSML}function_calls>", f"</{DSML}function_calls>"
CALL, END_CALL = f'<{DSML}invoke name="', f"</{DSML}invoke>"
PARAMETER, END_PARAMETER = f'<{DSML}parameter name="', f"</{DSML}parameter>"
MAX_TAG = MAX_HEAD + len(PARAMETER)
"""Maximum number of characters in a tag. A longer tag is parsed as text."""
_MARK = re.compile("[\ud800-\udfff]")
_REST = {CALL: '([^\ud800-\udfff]*?)">', PARAMETER: '([^\ud800-\udfff]*?)" string="(true|false)">'}
_TAG = {tag: re.compile(tag + _REST.get(tag, "")) for tag in (OPEN, CLOSE, CALL, END_CALL, PARAMETER, END_PARAMETER)}


@dataclass(frozen=True)
class DsmlCallSyntax(ToolCallSyntax):
    """The syntax of tool calls in DSML."""

    @property
    def special_token_names(self) -> tuple[str, ...]:
        return ("｜DSML｜",)


DSML_FORM = DsmlCallSyntax(before="\n\n", around=(OPEN, CLOSE))


# ---- how a call is written


def format_invoke(name: str, parameters: str) -> str:
    """Return a tool call as marked text. `parameters` are the arguments in DSML, joined by newlines."""
    return f'{CALL}{name}">\n{parameters}\n{END_CALL}'


def _format_call_on_new_line(name: str, parameters: str) -> str:
    return "\n" + format_invoke(name, parameters)


DSML_FRAME = ToolCallTemplate(_format_call_on_new_line, "", f"\n\n{OPEN}", f"\n{CLOSE}")
"""The template of a reply with tool calls. The arguments of a call are DSML parameters."""


# ---- how a call is read


Phase = Literal["first", "inside", "value", "end"]
_ALLOWED: Mapping[Phase, Sequence[str]] = {
    "first": (OPEN, CLOSE, CALL),
    "inside": (PARAMETER, END_CALL),
    "end": (END_PARAMETER,),
}
"""The tags that may come next in each phase of parsing. In the phase `value`, the text up to the next special token is an
argument."""


class DsmlItemParser:
    """An item that begins with `<` and is being read: the begin or end tag of a list of calls, or a call.

    White space may separate the tags of a call. The tags themselves must be exact, as the published parser requires. A call
    needs its end tag, because only the end tag shows that no argument is missing.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self.parts = ["<"]
        self._names = names
        self._phase: Phase = "first"
        self._tag, self._value = "<", list[str]()
        self._kind: Literal["open", "close", "call"] = "call"
        self._length = 0
        self._name, self._key, self._string = "", "", False
        self._arguments: dict[str, str] = {}

    def feed(self, text: str) -> State:
        self.parts.append(text)
        state: State | None = None
        while state is None:
            state, text = self._read_value(text) if self._phase == "value" else self._read_tag(text)
        if state == "complete":
            self._length = sum(map(len, self.parts)) - len(text)
        return state

    def close(self) -> State:
        """Return the state of the item at the end of the reply. An item that is still incomplete is broken."""
        return "broken"

    def is_call_so_far(self) -> bool:
        """Return whether an incomplete item may be a call, which is true of every open item."""
        return True

    def item(self) -> LexerItem | None:
        """Return the complete item, or None if its arguments are nested too deep."""
        text = "".join(self.parts)[: self._length]
        if self._kind != "call":
            return LexerItem(self._kind, text)
        arguments = "{" + ", ".join(f"{template_json(key)}: {value}" for key, value in self._arguments.items()) + "}"
        return None if json_object(arguments) is None else LexerItem("call", text, self._name, arguments)

    def _read_value(self, text: str) -> tuple[State | None, str]:
        """Read the text of an argument up to the next special token. Return the new state of the item (None if unchanged) and
        the unread text."""
        mark = _MARK.search(text)
        self._value.append(text[: mark.start()] if mark else text)
        if mark is None:
            return "open", ""
        value = "".join(self._value)
        if not value.endswith("</"):
            return "broken", ""
        value = value.removesuffix("</")
        if not self._string and not is_json(value):
            return "broken", ""
        self._arguments[self._key] = template_json(value) if self._string else value
        self._phase, self._tag = "end", "</"
        return None, text[mark.start() :]

    def _read_tag(self, text: str) -> tuple[State | None, str]:
        """Read a DSML tag. Return the new state of the item (None if unchanged) and the unread text."""
        self._tag += text
        if self._phase == "inside":
            self._tag = self._tag.lstrip(WHITE)
        for tag in _ALLOWED[self._phase]:
            match = _TAG[tag].match(self._tag)
            if match and match.end() <= MAX_TAG:
                rest, self._tag = self._tag[match.end() :], ""
                return self._apply_tag(tag, match), rest
        return "open" if any(map(self._may_become_tag, _ALLOWED[self._phase])) else "broken", ""

    def _may_become_tag(self, tag: str) -> bool:
        """Return whether the text read so far may become `tag`."""
        text = self._tag
        if len(text) < len(tag):
            return tag.startswith(text)
        return tag in _REST and text.startswith(tag) and len(text) < MAX_TAG and not _MARK.search(text, len(tag))

    def _apply_tag(self, tag: str, match: re.Match[str]) -> State | None:
        """Change the phase after a complete tag. Return the new state of the item, or None if the item continues."""
        if tag in (OPEN, CLOSE, END_CALL):
            self._kind = "open" if tag == OPEN else "close" if tag == CLOSE else "call"
            return "complete"
        if tag == CALL:
            self._name = match.group(1)
        if tag == PARAMETER:
            self._key, self._string, self._value = match.group(1), match.group(2) == "true", []
        known = self._name in self._names and (tag != PARAMETER or self._key not in self._arguments)
        self._phase = "value" if tag == PARAMETER else "inside"
        return None if known else "broken"
