"""CORS: let scripts from allowed origins call the API. Starlette's middleware answers the preflight requests and sets the headers.

Browsers send preflight requests without an API key, as the standard demands. The response to a preflight request depends only
on the request's headers and the allowed origins, so the response reveals nothing about the server. The request that follows a
preflight request needs an API key. The API uses no cookies.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from rorqual.core.errors import ConfigError

ORIGIN = re.compile(r"https?://[^\s/,?#@*]+")
EXPOSED = ("x-request-id", "x-rorqual-ignored", "x-rorqual-unlike", "retry-after")


def parse_origins(text: str) -> frozenset[str]:
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


def with_cors(app: ASGIApp, known: Collection[str]) -> ASGIApp:
    """Return `app` wrapped in a middleware that lets scripts from the origins `known` call `app`. All request headers are allowed."""
    if not known:
        return app
    methods, headers = ("GET", "POST"), ("*",)
    return CORSMiddleware(
        app, allow_origins=tuple(known), allow_methods=methods, allow_headers=headers, expose_headers=EXPOSED
    )
