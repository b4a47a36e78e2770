"""Size limits of a request's parts. The limits bound the memory and the time that a body takes.

The checks run in the tenant's thread. A long C call in the tenant's thread would still block the event loop, because
the call holds the GIL. Therefore the values of a body are counted in slices before the body is parsed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
            problem = f"The body has more than {MAX_VALUES:,} values (strings, numbers, lists, objects), the limit"
            raise refuse(f"{problem}. Send fewer values, for example text instead of token ids.", code="too_large")


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
                    _check_size(
                        f"{place}.tool_calls[{which}]", call, MAX_ARGUMENTS, "Shorten the arguments or remove the turn."
                    )
            elif name not in ("content", "reasoning_content"):
                _check_size(f"{place}.{name}", value, MAX_OTHER)
    if parts > MAX_PARTS:
        raise too_large("messages", parts, "content parts", MAX_PARTS, "Join the parts of each message.")
    if calls > MAX_CALLS:
        raise too_large("messages", calls, "tool calls", MAX_CALLS, "Remove the oldest turns.")


def _check_size(part: str, value: Any, most: int, remedy: str = FEWER) -> None:
    if isinstance(value, int | float | None):
        return
    size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))
    if size > most:
        raise too_large(part, size, "bytes of JSON", most, remedy)
