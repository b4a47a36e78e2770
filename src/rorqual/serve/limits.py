"""The limits on the numbers of JSON values, and of lists and objects, in a request body. The limits bound the memory and the time
that parsing a body takes.

The check of the limit runs in the tenant's thread. A long C call in the tenant's thread would still block the event loop,
because the call holds the GIL. Therefore the values of a body are counted slice by slice before the body is parsed.
"""

from __future__ import annotations

from rorqual.serve.errors import ApiError, bad_request

SLICE = 65_536
"""Maximum bytes of a request body that one callback of the event loop handles. Bodies of at most `SLICE` bytes are exempt
from the limits on the number of large bodies."""
MAX_VALUES = 262_144
"""Maximum number of JSON values in a request body: strings, numbers (including token ids), lists and objects."""
MAX_CONTAINERS = 32_768
"""Maximum number of lists and objects in a request body. Python's garbage collector visits each of them several times while the body is
parsed, and the event loop waits."""


def too_large(part: str, size: int, unit: str, limit: int, remedy: str) -> ApiError:
    """Return the error for an oversized part of a request."""
    part = part[:256]
    return bad_request(f"`{part}` has {size:,} {unit}; at most {limit:,} are allowed. {remedy}", part, "too_large")


def check_value_count(body: bytes) -> None:
    """Raise ApiError if a body has more than `MAX_VALUES` values, or more than `MAX_CONTAINERS` lists and objects. Values are counted
    without parsing the body, so invalid JSON raises no error here."""
    n_values, n_containers, in_string, split_escape = 1, 0, 0, b""
    for start in range(0, len(body), SLICE):
        chunk = split_escape + body[start : start + SLICE]
        split_escape = b"\\" if (len(chunk) - len(chunk.rstrip(b"\\"))) % 2 else b""
        chunk = chunk[: len(chunk) - len(split_escape)]
        # Without escaped quotes, the pieces between quotes lie alternately outside and inside strings.
        segments = chunk.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(segments[in_string::2])
        in_string = (in_string + len(segments) - 1) % 2
        n_containers += outside.count(b"[") + outside.count(b"{")
        n_values += outside.count(b",")
        if n_containers > MAX_CONTAINERS:
            problem = f"The body has more than {MAX_CONTAINERS:,} lists and objects, the limit"
            raise bad_request(f"{problem}. Send fewer or shorter lists.", code="too_large")
        if n_values + n_containers > MAX_VALUES:
            problem = f"The body has more than {MAX_VALUES:,} values (strings, numbers, lists, objects), the limit"
            raise bad_request(f"{problem}. Send fewer values, for example text instead of token ids.", code="too_large")
