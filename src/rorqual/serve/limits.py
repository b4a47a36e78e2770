"""Size limits of a request's parts. The limits bound the memory and the time that a body takes.

The checks run in the tenant's thread. A long C call in the tenant's thread would still block the event loop, because
the call holds the GIL. Therefore the values of a body are counted in slices before the body is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rorqual.core.sampling import PARAMS, ParamType, TextList, TokenBiases, TokenList
from rorqual.serve.errors import ApiError, refuse

SLICE = 65_536
"""Maximum bytes of a body that one callback of the event loop handles. Bodies of at most `SLICE` bytes count as
small."""
MAX_VALUES = 262_144
"""Maximum number of values in a body: strings, numbers (including token ids), lists and objects."""
MAX_TOOLS, MAX_ARGUMENTS, MAX_OTHER = 262_144, 262_144, 131_072
MAX_PARTS, MAX_CALLS = 4096, 4096
_FEWER: Mapping[type[ParamType], str] = {
    TextList: "Give fewer texts.",
    TokenList: "Give fewer ids.",
    TokenBiases: "Bias fewer tokens.",
}
ENTRIES: Mapping[str, tuple[int, str]] = {
    "messages": (4096, "Remove the oldest turns."),
    "tools": (128, "Give fewer tools."),
    **{
        name: (most, _FEWER[type(param.served)])
        for name, param in PARAMS.items()
        if (most := getattr(param.served, "most", 0))
    },
    "guided_choice": (1024, "Give fewer choices."),
}
"""For each list or object field: the maximum number of entries, and the remedy that the error gives."""
_TOKEN = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)(?:"(\s*:)?|\\?\Z)|[\[\]{}]', re.DOTALL)
"""A bracket, or a string with the colon after it. A string that the end cuts off matches too: otherwise, each escaped quote in it
would be tried as a beginning, in quadratic time."""
FEWER = "Make it smaller or leave it out."


def too_large(part: str, size: int, unit: str, limit: int, remedy: str) -> ApiError:
    """Return the error for an oversized part of a request."""
    part = part[:256]
    return refuse(f"`{part}` has {size:,} {unit}; at most {limit:,} are allowed. {remedy}", part, "too_large")


def check_values(body: bytes) -> None:
    """Raise ApiError if a body has more than `MAX_VALUES` values. Values are counted without parsing, so invalid JSON is allowed."""
    n_values, in_string, split_escape = 1, 0, b""
    for start in range(0, len(body), SLICE):
        chunk = split_escape + body[start : start + SLICE]
        split_escape = b"\\" if (len(chunk) - len(chunk.rstrip(b"\\"))) % 2 else b""
        chunk = chunk[: len(chunk) - len(split_escape)]
        # Without escaped quotes, the pieces between quotes lie alternately outside and inside strings.
        segments = chunk.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(segments[in_string::2])
        in_string = (in_string + len(segments) - 1) % 2
        n_values += outside.count(b",") + outside.count(b"[") + outside.count(b"{")
        if n_values > MAX_VALUES:
            part = _part_at(body[: start + SLICE])
            problem = f"With `{part}`, the body has more than {MAX_VALUES:,} values (strings, numbers, lists, objects), the limit"
            raise refuse(
                f"{problem}. Send fewer values, for example text instead of token ids.", part or None, "too_large"
            )


def _part_at(body: bytes) -> str:
    """Return the top-level parameter that contains the end of `body`, a truncated request body."""
    depth, name = 0, b""
    for match in _TOKEN.finditer(body):
        text, key, colon = match.group(0, 1, 2)
        if key is None:
            depth += 1 if text in b"[{" else -1
        elif colon and depth == 1:
            name = key
    return name[:256].decode("utf-8", "replace")


def check_parts(data: Mapping[str, Any]) -> None:
    """Raise ApiError if a field or message of a parsed body exceeds its size limit."""
    for name, value in data.items():
        most, remedy = ENTRIES.get(name, (0, ""))
        if most and isinstance(value, list | dict) and len(value) > most:
            raise too_large(name, len(value), "entries", most, remedy)
        if name == "messages" and isinstance(value, list):
            _check_messages(value)
        elif name == "tools":
            _check_size("tools", value, MAX_TOOLS, "Give fewer tools or shorter descriptions.")
        elif name not in ("messages", "prompt"):
            _check_size(name, value, MAX_OTHER)


def _check_messages(messages: Sequence[Any]) -> None:
    parts = calls = 0
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            continue
        place = f"messages[{number}]"
        for name, value in message.items():
            if name == "content" and isinstance(value, list):
                parts += len(value)
            elif name == "tool_calls" and isinstance(value, list):
                calls += len(value)
                for which, call in enumerate(value):
                    _check_call(call, f"{place}.tool_calls[{which}]")
            elif name not in ("content", "reasoning_content"):
                _check_size(f"{place}.{name}", value, MAX_OTHER)
        if parts > MAX_PARTS:
            raise too_large("messages", parts, "content parts or more", MAX_PARTS, "Join the parts of each message.")
        if calls > MAX_CALLS:
            raise too_large("messages", calls, "tool calls or more", MAX_CALLS, "Remove the oldest turns.")


def _check_call(call: Any, place: str) -> None:
    function = call.get("function") if isinstance(call, dict) else None
    for name, value in function.items() if isinstance(function, dict) else ():
        _check_size(f"{place}.function.{name}", value, MAX_ARGUMENTS, "Shorten the arguments or remove the turn.")
    if isinstance(call, dict):
        _check_size(place, {name: value for name, value in call.items() if name != "function"}, MAX_OTHER)


def _check_size(part: str, value: Any, most: int, remedy: str = FEWER) -> None:
    if isinstance(value, int | float | None):
        return
    size = sum(_sizes(value))
    if size > most:
        raise too_large(part, size, "bytes of JSON", most, remedy)


def _sizes(value: Any) -> Iterator[int]:
    """Yield the approximate JSON sizes of `value` and of all nested values, in bytes. Numbers count as eight bytes."""
    todo = [value]
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            yield len(value.encode("utf-8", "surrogatepass")) + 3
        elif isinstance(value, dict):
            yield 2
            todo += value
            todo += value.values()
        elif isinstance(value, list):
            yield 2
            todo += value
        else:
            yield 8
