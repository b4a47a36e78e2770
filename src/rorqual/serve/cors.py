"""CORS: which origins' scripts may call the API (Fetch standard, CORS protocol).

By the standard, a preflight request carries no key. Its answer depends only on its headers and the allowed origins, and is
the same for every path, so it reveals nothing about the server. The request after it needs a key. Cookies are not used.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from rorqual.core.errors import ConfigError

ORIGIN = re.compile(r"https?://[^\s/,?#@*]+")
NAMES = re.compile(r"[A-Za-z0-9_, -]{0,1024}")
EXPOSED = "x-request-id, x-rorqual-ignored, retry-after"
MAX_AGE = 600
"""Seconds that a browser may cache a preflight's answer."""


def origins(text: str) -> frozenset[str]:
    """Return the origins of a comma-separated list. Raises ConfigError if one is not an origin; `*` is not allowed."""
    found = [origin.strip().lower() for origin in text.split(",") if origin.strip()]
    for origin in found:
        if not ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"{origin[:100]!r} is not an origin",
                where="cors",
                remedy="Write origins as a browser sends them: cors=https://app.example,http://localhost:3000",
            )
    return frozenset(found)


def allowed(headers: Mapping[bytes, bytes], known: Collection[str]) -> str:
    """Return a request's origin if it is in `known`, else an empty string."""
    origin = headers.get(b"origin", b"").decode("latin-1")
    return origin if origin in known else ""


def is_preflight(method: str, headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a request is a CORS preflight."""
    return method == "OPTIONS" and b"access-control-request-method" in headers


def preflight(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """Return the headers of a preflight's answer. It allows all requested headers, because access depends only on the key."""
    names = headers.get(b"access-control-request-headers", b"").decode("latin-1")
    return {
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": names if NAMES.fullmatch(names) else "authorization, content-type",
        "access-control-max-age": str(MAX_AGE),
    }


def answered(origin: str) -> dict[str, str]:
    """Return the CORS headers of a response, for a server that has allowed origins."""
    given = {"access-control-allow-origin": origin, "access-control-expose-headers": EXPOSED} if origin else {}
    return {"vary": "origin", **given}
