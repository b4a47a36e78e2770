"""Other sites' scripts: which origins may ask, and what a browser is told of it (the Fetch standard's CORS protocol).

A preflight carries no key, by the standard. Its answer depends on its own headers and the list of origins alone, and is the same for every
address: it tells nobody what there is. Whatever follows it needs a key, as all requests do; cookies are never asked for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from rorqual.core.errors import ConfigError

ORIGIN = re.compile(r"https?://[^\s/,?#@*]+")
NAMES = re.compile(r"[A-Za-z0-9_, -]{0,1024}")
EXPOSED = "x-request-id, x-rorqual-ignored, retry-after"
MAX_AGE = 600
"""Seconds that a browser may remember a preflight."""


def origins(text: str) -> frozenset[str]:
    """The origins in a list with commas; what is none, `*` included, is a `ConfigError`."""
    found = [origin.strip().lower() for origin in text.split(",") if origin.strip()]
    for origin in found:
        if not ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"{origin[:100]!r} is not an origin",
                where="cors",
                remedy="Name each origin as a browser does: cors=https://app.example,http://localhost:3000",
            )
    return frozenset(found)


def allowed(headers: Mapping[bytes, bytes], known: Collection[str]) -> str:
    """The origin of a request, where it is a known one."""
    origin = headers.get(b"origin", b"").decode("latin-1")
    return origin if origin in known else ""


def is_preflight(method: str, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser asks whether a script may ask."""
    return method == "OPTIONS" and b"access-control-request-method" in headers


def preflight(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """Headers of the answer to a preflight: the names it asks for are those it gets, as keys alone decide what a script may do."""
    names = headers.get(b"access-control-request-headers", b"").decode("latin-1")
    return {
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": names if NAMES.fullmatch(names) else "authorization, content-type",
        "access-control-max-age": str(MAX_AGE),
    }


def answered(origin: str) -> dict[str, str]:
    """Headers of every answer where origins are known."""
    given = {"access-control-allow-origin": origin, "access-control-expose-headers": EXPOSED} if origin else {}
    return {"vary": "origin", **given}
