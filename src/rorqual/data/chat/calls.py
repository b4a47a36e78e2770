"""How model families write tool calls, and how one call is parsed.

A call is complete or it is text. A complete call has a begin token, the name of an offered tool, a JSON object of arguments,
and the end token. Otherwise the begin token is plain text, and parsing continues after it. docs/how-to/tools.md lists the
consequences.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rorqual.data.chat.special_tokens import CHARS, END_THINK, NAME_OF, THINK, raw

WHITE = "".join(char for char in map(chr, range(0x3001)) if char.isspace())
MAX_HEAD = 256
"""Maximum length, in characters, of the text between the begin token and the arguments, which contains the name."""
MAX_DEPTH = 100
"""Maximum nesting depth of arguments. Deeper arguments are not parsed as a call."""

Kind = Literal["text", "think", "end", "call", "open", "close"]


@dataclass(frozen=True)
class Item:
    """A part of a reply: text, a thinking tag, a token around calls, or a call. `text` is its marked text (see `marks.py`)."""

    kind: Kind
    text: str
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class CallForm:
    """The syntax of a family's tool calls. Special tokens are given as their characters in marked text.

    `begin` opens a call. A `bare` form has calls without `begin`, where an answer begins with `{`. `around` encloses all calls
    of a reply. `named` parses the text between `begin` and the arguments: it returns the name, "" if the name is inside the
    JSON object, or None if the text is not a call. `tail` matches the text allowed between the arguments and `end`.
    """

    begin: str
    end: str | None
    named: Callable[[str], str | None]
    inside: str = ""
    around: tuple[str, str] | None = None
    tail: str = r"\s*"
    bare: bool = False
    before: str = ""
    """Text that the family writes between content and a call."""

    @property
    def gap(self) -> str:
        """Characters that only separate calls."""
        return WHITE + (";" if self.bare else "")

    @property
    def marks(self) -> tuple[str, ...]:
        """The names of all special tokens of this syntax."""
        chars = self.begin + (self.end or "") + self.inside + "".join(self.around or ())
        return tuple(NAME_OF[char] for char in chars)

    def read(self, head: str, body: str, names: Collection[str]) -> tuple[str, str] | None:
        """Return name and arguments of a call, or None if it is not a valid call."""
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
            arguments = _string(arguments)  # some models write the arguments as a JSON string that contains JSON
        return (said, arguments) if said in names and _object(arguments) is not None else None


def _no_head(head: str) -> str | None:
    return "" if not head.strip(WHITE) else None


_HEAD = re.compile(
    rf"\s*([^\s\ud800-\udfff]+)\s*{CHARS['<｜tool▁sep｜>']}\s*(?:([^\s\ud800-\udfff`]+)\s*```(?:json)?\s*)?"
)


def _deepseek_head(head: str) -> str | None:
    """Parse V3.1's `name<sep>`, or V3's `function<sep>name` before a code fence."""
    found = _HEAD.fullmatch(head) if len(head) <= MAX_HEAD else None
    return (found.group(2) or found.group(1)) if found else None


HERMES = CallForm(CHARS["<tool_call>"], CHARS["</tool_call>"], _no_head, before="\n")
"""`<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>`, as Hermes and Qwen write it."""
LLAMA = CallForm(CHARS["<|python_tag|>"], None, _no_head, bare=True)
"""`{"name": ..., "parameters": {...}}` in place of an answer, as Llama writes it."""
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
    """How to write a reply that consists of calls, as marked text: `begin`, the calls joined by `gap`, `end`.

    `call(name, arguments)` formats one call.
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
"""DeepSeek-V3.1's format."""
FENCED_FRAME = CallFrame(_fenced, "\n", _BEGIN, _END)
"""DeepSeek-V3's and R1's format."""


# ---- the arguments


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse)
_SPACE = re.compile(r"[ \t\n\r]*")


def _object(text: str) -> dict[str, str] | None:
    """Return the members of a JSON object, each value as its source text.

    Returns None if `text` is not a JSON object or is nested deeper than `MAX_DEPTH`.
    """
    try:
        text.encode()
        if not isinstance(_JSON.decode(text), dict) or too_deep(text):
            return None
        return dict(_members(text))
    except (ValueError, RecursionError):
        return None


def _members(text: str) -> Iterator[tuple[str, str]]:
    """Yield key and value source of each member. `text` must be a valid JSON object."""
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
    """Return whether JSON is nested deeper than `MAX_DEPTH`."""
    depth = deepest = 0
    for char in re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text):
        depth += (char in "[{") - (char in "]}")
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH


def _string(text: str) -> str:
    """Decode a JSON string; return "" for any other value."""
    value = _JSON.decode(text)
    return value if isinstance(value, str) else ""


# ---- parts of a text


def kind_of(char: str, form: CallForm | None) -> Kind:
    """Classify one character that is not part of a call."""
    if char in (THINK, END_THINK):
        return "think" if char == THINK else "end"
    if form is not None and form.around and char in form.around:
        return "open" if char == form.around[0] else "close"
    return "text"


def ending(text: str, form: CallForm) -> int | None:
    """Return the length of the text that ends a call after its arguments, or None if other text follows.

    `text` is everything after the arguments. The end token may be missing before another special token or at the end of the
    reply, where it may also be incomplete.
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
