"""The tool-call syntax of each model family, and the parser of a single call with JSON arguments.

A complete call has a begin token, the name of a tool in the request, a JSON object of arguments, and an end token. The begin
token of an invalid call is treated as plain text, and parsing continues after this token. A call that `max_tokens` cut off is
dropped. See docs/how-to/tools.md.
`dsml.py` has the syntax of DeepSeek-V3.2, which writes each argument between tags.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rorqual.data.chat.special_tokens import CHARS, END_THINK, NAME_OF, THINK, restore_token_names

WHITE = "".join(char for char in map(chr, range(0x3001)) if char.isspace())
MAX_HEAD = 256
"""Maximum number of characters between the begin token of a call and its arguments. Some model families write the tool name
between begin token and arguments."""
MAX_DEPTH = 100
"""Maximum nesting depth of the arguments of a tool call. A call with deeper arguments is not parsed as a call."""

Kind = Literal["text", "think", "end", "call", "open", "close", "cut"]
State = Literal["open", "complete", "broken", "cut"]
"""The state of an item that is being read: the item needs more text (open), is complete, cannot become valid (broken), or is a call
that the end of a truncated reply cut off (cut)."""


@dataclass(frozen=True)
class LexerItem:
    """A lexical item of a reply: text, a thinking tag, the begin or end token of the list of calls, a call, or a call that the end of
    a truncated reply cut off (`cut`).

    `text` is the source of the lexical item as marked text (see `special_tokens.py`).
    """

    kind: Kind
    text: str
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, kw_only=True)
class ToolCallSyntax(ABC):
    """The tool-call syntax of a model family. The special tokens of the syntax are written as in marked text (see
    `special_tokens.py`).

    `before` is the text that models of the family write between the content and the first call. `around` holds the begin token
    and the end token of the list of calls.
    """

    before: str = ""
    around: tuple[str, str] | None = None

    @property
    def separator_chars(self) -> str:
        """Characters that may separate two tool calls in a reply."""
        return WHITE

    @property
    @abstractmethod
    def special_token_names(self) -> tuple[str, ...]:
        """The names of all special tokens that the syntax uses."""


@dataclass(frozen=True)
class JsonCallSyntax(ToolCallSyntax):
    """A syntax in which the arguments of a call are one JSON object.

    `begin` is the text that opens a call. If `bare` is true, an answer that begins with `{` is a call even without `begin`.
    `named` parses the text between `begin` and the arguments. `named` returns the tool name, "" if the name is in the JSON
    object, or None if the text is not a call. `inside` is the special token that the text between `begin` and the arguments may
    contain. `tail` is a regular expression for the text between the arguments and `end`.
    """

    begin: str
    end: str | None
    named: Callable[[str], str | None]
    inside: str = ""
    tail: str = r"\s*"
    bare: bool = False

    @property
    def separator_chars(self) -> str:
        return WHITE + (";" if self.bare else "")

    @property
    def special_token_names(self) -> tuple[str, ...]:
        chars = self.begin + (self.end or "") + self.inside + "".join(self.around or ())
        return tuple(NAME_OF[char] for char in chars)

    def parse_call(self, head: str, body: str, names: Collection[str]) -> tuple[str, str] | None:
        """Return (name, arguments) of a call to a tool in `names`, or None if `head` and `body` are not a valid call.

        `head` is the text between `begin` and the JSON object, and `body` is the JSON object.
        """
        name, text = self.named(head), restore_token_names(body)
        if name is None or THINK in body or END_THINK in body:
            return None
        if name:
            return (name, text) if name in names and json_object(text) is not None else None
        members = json_object(text)
        if members is None or "name" not in members:
            return None
        key = "parameters" if "parameters" in members and "arguments" not in members else "arguments"
        name, arguments = _decode_json_string(members["name"]), members.get(key, "{}")
        if json_object(arguments) is None:
            arguments = _decode_json_string(
                arguments
            )  # some models write the arguments as a JSON string that contains JSON
        return (name, arguments) if name in names and json_object(arguments) is not None else None


def _parse_empty_head(head: str) -> str | None:
    return "" if not head.strip(WHITE) else None


_HEAD = re.compile(
    rf"\s*([^\s\ud800-\udfff]+)\s*{CHARS['<｜tool▁sep｜>']}\s*(?:([^\s\ud800-\udfff`]+)\s*```(?:json)?\s*)?"
)


def _parse_deepseek_head(head: str) -> str | None:
    """Return the tool name in `name<sep>` (V3.1) or in `function<sep>name` before a code fence (V3), or None."""
    match = _HEAD.fullmatch(head) if len(head) <= MAX_HEAD else None
    return (match.group(2) or match.group(1)) if match else None


HERMES = JsonCallSyntax(CHARS["<tool_call>"], CHARS["</tool_call>"], _parse_empty_head, before="\n")
"""The syntax of Hermes and Qwen: `<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>`."""
LLAMA = JsonCallSyntax(CHARS["<|python_tag|>"], None, _parse_empty_head, bare=True)
"""The syntax of Llama: a reply that consists of `{"name": ..., "parameters": {...}}`."""
DEEPSEEK = JsonCallSyntax(
    CHARS["<｜tool▁call▁begin｜>"],
    CHARS["<｜tool▁call▁end｜>"],
    _parse_deepseek_head,
    inside=CHARS["<｜tool▁sep｜>"],
    around=(CHARS["<｜tool▁calls▁begin｜>"], CHARS["<｜tool▁calls▁end｜>"]),
    tail=r"\s*(?:```\s*)?",
)
"""DeepSeek's syntax: `<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>name<｜tool▁sep｜>{...}<｜tool▁call▁end｜><｜tool▁calls▁end｜>`."""


# ---- how a call is written


@dataclass(frozen=True)
class ToolCallTemplate:
    """The template of a reply that consists of tool calls, as marked text.

    `call(name, arguments)` formats one call. `arguments` is a JSON object, or in DSML the parameters of the call. The reply
    consists of `begin`, the calls joined by `gap`, and `end`.
    """

    call: Callable[[str, str], str]
    gap: str = ""
    begin: str = ""
    end: str = ""


def _format_hermes_call(name: str, arguments: str) -> str:
    return f'{HERMES.begin}\n{{"name": "{name}", "arguments": {arguments}}}\n{HERMES.end}'


def _format_llama_call(name: str, arguments: str) -> str:
    return f'{{"name": "{name}", "parameters": {arguments}}}'


def _format_deepseek_call(name: str, arguments: str) -> str:
    return f"{DEEPSEEK.begin}{name}{DEEPSEEK.inside}{arguments}{DEEPSEEK.end}"


def _format_fenced_call(name: str, arguments: str) -> str:
    return f"{DEEPSEEK.begin}function{DEEPSEEK.inside}{name}\n```json\n{arguments}\n```{DEEPSEEK.end}"


_BEGIN, _END = CHARS["<｜tool▁calls▁begin｜>"], CHARS["<｜tool▁calls▁end｜>"]
HERMES_FRAME = ToolCallTemplate(_format_hermes_call, "\n")
LLAMA_FRAME = ToolCallTemplate(_format_llama_call, "; ")
DEEPSEEK_FRAME = ToolCallTemplate(_format_deepseek_call, "", _BEGIN, _END)
"""The tool-call template of DeepSeek-V3.1."""
FENCED_FRAME = ToolCallTemplate(_format_fenced_call, "\n", _BEGIN, _END)
"""The tool-call template of DeepSeek-V3 and R1, with the arguments in a code fence."""


# ---- the arguments


def _refuse_json_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse_json_constant)
_SPACE = re.compile(r"[ \t\n\r]*")


def json_object(text: str) -> dict[str, str] | None:
    """Return the members of a JSON object, with each value as JSON text.

    Return None if `text` is not a JSON object or is nested deeper than `MAX_DEPTH`.
    """
    try:
        text.encode()
        if not isinstance(_JSON.decode(text), dict) or nested_too_deep(text):
            return None
        return dict(_json_members(text))
    except (ValueError, RecursionError):
        return None


def _json_members(text: str) -> Iterator[tuple[str, str]]:
    """Yield (key, JSON text of the value) for each member of the JSON object `text`, which must be valid."""
    at = _skip_whitespace(text, text.index("{") + 1)
    while text[at] != "}":
        key, at = _JSON.raw_decode(text, at)
        start = _skip_whitespace(text, _skip_whitespace(text, at) + 1)
        _, at = _JSON.raw_decode(text, start)
        yield key, text[start:at]
        at = _skip_whitespace(text, at)
        if text[at] == ",":
            at = _skip_whitespace(text, at + 1)


def _skip_whitespace(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def is_json(text: str) -> bool:
    """Return whether `text` is valid JSON for a strict parser and has a nesting depth of at most `MAX_DEPTH`."""
    try:
        text.encode()
        _JSON.decode(text)
    except (ValueError, RecursionError):
        return False
    return not nested_too_deep(text)


def nested_too_deep(text: str) -> bool:
    """Return whether the JSON in `text` is nested deeper than `MAX_DEPTH`."""
    depth = deepest = 0
    for char in re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text):
        depth += (char in "[{") - (char in "]}")
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH


def _decode_json_string(text: str) -> str:
    """Decode a JSON string. Return "" for a JSON value of another type."""
    value = _JSON.decode(text)
    return value if isinstance(value, str) else ""


# ---- parts of a text


def item_kind_of_char(char: str, form: ToolCallSyntax | None) -> Kind:
    """Return the item kind of one character of marked text outside tool calls."""
    if char in (THINK, END_THINK):
        return "think" if char == THINK else "end"
    if form is not None and form.around and char in form.around:
        return "open" if char == form.around[0] else "close"
    return "text"


def call_end_length(text: str, form: JsonCallSyntax) -> int | None:
    """Return the length of the text that closes a tool call, or None if the call is not closed. `text` is the reply after the
    arguments.

    The end token of the call may be missing if another special token follows. At the end of the reply, the end token of the
    call may be missing or incomplete.
    """
    if form.end is None:
        return 0
    match = re.match(form.tail, text)
    length = match.end() if match else 0
    after = text[length:]
    if after[:1] == form.end:
        return length + 1
    if after[:1] in NAME_OF:
        return length
    return length + len(after) if NAME_OF[form.end].startswith(after) else None
