"""CORS headers, which allow scripts from other origins to call the API (CORS protocol of the Fetch standard).

Browsers send preflight requests without an API key, as the standard demands. The response to a preflight request
depends only on the request's headers and the allowed origins, not on the path. Therefore the preflight response reveals
nothing about the server. The request that follows the preflight needs a key. Cookies are not used.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from rorqual.core.errors import ConfigError

ORIGIN = re.compile(r"https?://[^\s/,?#@*]+")
NAMES = re.compile(r"[A-Za-z0-9_, -]{0,1024}")
EXPOSED = "x-request-id, x-rorqual-ignored, retry-after"
MAX_AGE = 600
"""Seconds that a browser may cache the response to a preflight request."""


def origins(text: str) -> frozenset[str]:
    """Parse a comma-separated list of origins. Raises ConfigError if an entry is not an origin; `*` is not allowed."""
    parsed = [origin.strip().lower() for origin in text.split(",") if origin.strip()]
    for origin in parsed:
        if not ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"{origin[:100]!r} is not an origin",
                where="cors",
                remedy="Write origins as a browser sends them: cors=https://app.example,http://localhost:3000",
            )
    return frozenset(parsed)


def allowed(headers: Mapping[bytes, bytes], known: Collection[str]) -> str:
    """Return the origin of a request if it is in `known`, else an empty string."""
    origin = headers.get(b"origin", b"").decode("latin-1")
    return origin if origin in known else ""


def is_preflight(method: str, headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a request is a CORS preflight request."""
    return method == "OPTIONS" and b"access-control-request-method" in headers


def preflight(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """Return the headers of the response to a preflight request.

    All requested headers are allowed, because access depends only on the API key.
    """
    names = headers.get(b"access-control-request-headers", b"").decode("latin-1")
    return {
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": names if NAMES.fullmatch(names) else "authorization, content-type",
        "access-control-max-age": str(MAX_AGE),
    }


def answered(origin: str) -> dict[str, str]:
    """Return the CORS headers of a response. `origin`: the request's origin if it is allowed, else empty."""
    headers = {"access-control-allow-origin": origin, "access-control-expose-headers": EXPOSED} if origin else {}
    return {"vary": "origin", **headers}
