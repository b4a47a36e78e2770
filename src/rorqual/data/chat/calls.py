"""How families write calls of tools, and how one is read.

A call is read whole or not at all: from its begin mark on stands the name of a tool that was offered, a JSON object of arguments, and the
end mark. Otherwise the begin mark is text like any other, and reading goes on behind it. docs/tools.md lists what follows from this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rorqual.data.chat.marks import CHARS, END_THINK, NAME_OF, THINK, raw

WHITE = "".join(char for char in map(chr, range(0x3001)) if char.isspace())
MAX_HEAD = 256
"""Characters between a begin mark and the arguments: room for a name."""
MAX_DEPTH = 100
"""Nesting of arguments; deeper ones are no call."""

Kind = Literal["text", "think", "end", "call", "open", "close"]


@dataclass(frozen=True)
class Item:
    """A part of a reply: text, a thinking mark, a mark around calls, or a call. `text` is its marked text."""

    kind: Kind
    text: str
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class CallForm:
    """A family's way of writing calls, by the characters of its marks.

    `begin` opens a call; bare forms have calls without one, where an answer begins with `{`. `around` encloses all calls of a reply.
    `named` reads what stands between the begin mark and the arguments: the name, "" where the name is inside the JSON object, None where it
    is no call. `tail` is what may stand between the arguments and the end mark.
    """

    begin: str
    end: str | None
    named: Callable[[str], str | None]
    inside: str = ""
    around: tuple[str, str] | None = None
    tail: str = r"\s*"
    bare: bool = False
    before: str = ""
    """What the family writes between its text and a call."""

    @property
    def gap(self) -> str:
        """Characters that only separate calls."""
        return WHITE + (";" if self.bare else "")

    @property
    def marks(self) -> tuple[str, ...]:
        """Names of all its marks."""
        chars = self.begin + (self.end or "") + self.inside + "".join(self.around or ())
        return tuple(NAME_OF[char] for char in chars)

    def read(self, head: str, body: str, names: Collection[str]) -> tuple[str, str] | None:
        """Name and arguments of a call; None where it is none."""
        name, text = self.named(head), raw(body)
        if name is None or THINK in body or END_THINK in body:
            return None
        if name:
            return (name, text) if name in names and _object(text) is not None else None
        members = _object(text)
        if members is None or "name" not in members:
            return None
        key = "parameters" if "parameters" in members and "arguments" not in members else "arguments"
        said, arguments = _string(members["name"]), members.get(key, "{}")
        if _object(arguments) is None:
            arguments = _string(arguments)  # JSON within a string of JSON, as some models write it
        return (said, arguments) if said in names and _object(arguments) is not None else None


def _no_head(head: str) -> str | None:
    return "" if not head.strip(WHITE) else None


_HEAD = re.compile(
    rf"\s*([^\s\ud800-\udfff]+)\s*{CHARS['<｜tool▁sep｜>']}\s*(?:([^\s\ud800-\udfff`]+)\s*```(?:json)?\s*)?"
)


def _deepseek_head(head: str) -> str | None:
    """V3.1: `name<sep>`; before it: `function<sep>name` and a fence."""
    found = _HEAD.fullmatch(head) if len(head) <= MAX_HEAD else None
    return (found.group(2) or found.group(1)) if found else None


HERMES = CallForm(CHARS["<tool_call>"], CHARS["</tool_call>"], _no_head, before="\n")
"""`<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>`: Hermes', Qwen's."""
LLAMA = CallForm(CHARS["<|python_tag|>"], None, _no_head, bare=True)
"""`{"name": ..., "parameters": {...}}` in place of an answer."""
DEEPSEEK = CallForm(
    CHARS["<｜tool▁call▁begin｜>"],
    CHARS["<｜tool▁call▁end｜>"],
    _deepseek_head,
    inside=CHARS["<｜tool▁sep｜>"],
    around=(CHARS["<｜tool▁calls▁begin｜>"], CHARS["<｜tool▁calls▁end｜>"]),
    tail=r"\s*(?:```\s*)?",
)
"""`<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>name<｜tool▁sep｜>{...}<｜tool▁call▁end｜><｜tool▁calls▁end｜>`."""


# ---- how a call is written


@dataclass(frozen=True)
class CallFrame:
    """How a reply that only calls is written, as marked text: `begin`, the calls with `gap` between them, `end`.

    `call(name, arguments)` is one call.
    """

    call: Callable[[str, str], str]
    gap: str = ""
    begin: str = ""
    end: str = ""


def _hermes(name: str, arguments: str) -> str:
    return f'{HERMES.begin}\n{{"name": "{name}", "arguments": {arguments}}}\n{HERMES.end}'


def _llama(name: str, arguments: str) -> str:
    return f'{{"name": "{name}", "parameters": {arguments}}}'


def _deepseek(name: str, arguments: str) -> str:
    return f"{DEEPSEEK.begin}{name}{DEEPSEEK.inside}{arguments}{DEEPSEEK.end}"


def _fenced(name: str, arguments: str) -> str:
    return f"{DEEPSEEK.begin}function{DEEPSEEK.inside}{name}\n```json\n{arguments}\n```{DEEPSEEK.end}"


_BEGIN, _END = CHARS["<｜tool▁calls▁begin｜>"], CHARS["<｜tool▁calls▁end｜>"]
HERMES_FRAME = CallFrame(_hermes, "\n")
LLAMA_FRAME = CallFrame(_llama, "; ")
DEEPSEEK_FRAME = CallFrame(_deepseek, "", _BEGIN, _END)
"""V3.1's."""
FENCED_FRAME = CallFrame(_fenced, "\n", _BEGIN, _END)
"""V3's and R1's."""


# ---- the arguments


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse)
_SPACE = re.compile(r"[ \t\n\r]*")


def _object(text: str) -> dict[str, str] | None:
    """Members of a JSON object, each value as it is spelt; None where the text is anything else, or nests beyond reason."""
    try:
        text.encode()
        if not isinstance(_JSON.decode(text), dict) or too_deep(text):
            return None
        return dict(_members(text))
    except (ValueError, RecursionError):
        return None


def _members(text: str) -> Iterator[tuple[str, str]]:
    """Of a text that is a JSON object."""
    at = _space(text, text.index("{") + 1)
    while text[at] != "}":
        key, at = _JSON.raw_decode(text, at)
        start = _space(text, _space(text, at) + 1)
        _, at = _JSON.raw_decode(text, start)
        yield key, text[start:at]
        at = _space(text, at)
        if text[at] == ",":
            at = _space(text, at + 1)


def _space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def too_deep(text: str) -> bool:
    """Whether JSON nests deeper than `MAX_DEPTH`."""
    depth = deepest = 0
    for char in re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text):
        depth += (char in "[{") - (char in "]}")
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH


def _string(text: str) -> str:
    """What a JSON string says; empty for any other value."""
    value = _JSON.decode(text)
    return value if isinstance(value, str) else ""


# ---- what is found in a text


def kind_of(char: str, form: CallForm | None) -> Kind:
    """What one character is, apart from a call."""
    if char in (THINK, END_THINK):
        return "think" if char == THINK else "end"
    if form is not None and form.around and char in form.around:
        return "open" if char == form.around[0] else "close"
    return "text"


def ending(text: str, form: CallForm) -> int | None:
    """Length of what ends a call behind its arguments, in all the text that there is; None where something else stands there.

    The end mark may be missing before another mark and at the end of a reply, and cut short at the end of a reply.
    """
    if form.end is None:
        return 0
    found = re.match(form.tail, text)
    length = found.end() if found else 0
    rest = text[length:]
    if rest[:1] == form.end:
        return length + 1
    if rest[:1] in NAME_OF:
        return length
    return length + len(rest) if NAME_OF[form.end].startswith(rest) else None
