"""Access control in front of Gradio: which of its routes are open, and which tenant owns each page session.

Gradio stores a page's state (conversation, running events, their stream) under a `session_hash` that the browser invents, and
checks no owner. The hash is not secret, because URLs contain it. Therefore a hash belongs to the tenant that uses it first,
and others are refused. Gradio gets a hash of tenant and session, so that two tenants can never share state.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request
from starlette.types import Message, Receive, Scope

from rorqual.serve.bodies import body_of
from rorqual.serve.errors import ApiError, refuse
from rorqual.serve.service import Service

MOST_PAGES = 256
"""Maximum number of page sessions per tenant. A further one drops the least recently used, with its conversation. Each
takes 25 kB in Gradio."""
OPEN = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|gradio_api/startup-events)|/(assets|static|svelte)/[\w./-]+",
    re.ASCII,
)
"""Routes without session state. All routes except these and those below are closed: Gradio has routes for files and proxies."""
JOIN, DATA = "/gradio_api/queue/join", "/gradio_api/queue/data"
HEARTBEAT = "/gradio_api/heartbeat/"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
FIELDS = ("data", "event_data", "fn_index", "trigger_id")
"""Fields of an event that are passed on to Gradio, in addition to `session_hash`."""


class Pages:
    """The owner of each page session. `forget` drops Gradio's state of a session."""

    def __init__(self, forget: Callable[[str], None]) -> None:
        self._forget = forget
        self._tenants: dict[str, str] = {}
        self._own: dict[str, dict[str, None]] = {}  # by tenant, the least recently used first

    def __len__(self) -> int:
        return len(self._tenants)

    def claim(self, tenant: str, name: str) -> str:
        """Return the session hash for Gradio of a tenant's page. Raises ApiError if another tenant owns the session."""
        if not NAME.fullmatch(name):
            raise refuse("`session_hash` must be 1 to 64 letters, digits, - and _.", "session_hash")
        if self._tenants.setdefault(name, tenant) != tenant:
            raise ApiError(
                403, "Another tenant opened this page. Reload it.", param="session_hash", code="not_your_page"
            )
        own = self._own.setdefault(tenant, {})
        own.pop(name, None)
        own[name] = None
        if len(own) > MOST_PAGES:
            oldest = next(iter(own))
            del own[oldest], self._tenants[oldest]
            self._forget(_inner(tenant, oldest))
        return _inner(tenant, name)

    async def bind(self, scope: Scope, receive: Receive, tenant: str, service: Service) -> tuple[Scope, Receive]:
        """Return the request in the form that Gradio may see. Raises ApiError if the request is not allowed."""
        path, method = scope["path"], scope["method"]
        if path == JOIN:
            _only(method, "POST")
            async with body_of(Request(scope, receive), service.max_body, service.bodies, tenant) as parts:
                event = await service.beside(tenant, partial(_event, b"".join(parts)))
            event["session_hash"] = self.claim(tenant, event["session_hash"])
            return _with_body(scope, receive, await service.beside(tenant, lambda: json.dumps(event).encode()))
        if path == DATA:
            _only(method, "GET")
            name = self.claim(tenant, _named(scope["query_string"]))
            return {**scope, "query_string": f"session_hash={name}".encode()}, receive
        if path.startswith(HEARTBEAT):
            _only(method, "GET")
            path = HEARTBEAT + self.claim(tenant, path.removeprefix(HEARTBEAT))
            return {**scope, "path": path, "raw_path": path.encode(), "query_string": b""}, receive
        if not OPEN.fullmatch(path) or ".." in path:
            raise ApiError(404, "This route does not exist.", code="no_such_route")
        _only(method, "GET", "HEAD")
        return {**scope, "query_string": b""}, receive


def _inner(tenant: str, name: str) -> str:
    return hashlib.sha256(f"{tenant} {name}".encode()).hexdigest()


def _only(method: str, *known: str) -> None:
    if method not in known:
        raise ApiError(405, f"This route does not support {method[:16]}.", code="method_not_allowed")


def _named(query: bytes) -> str:
    names = [
        value for key, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True) if key == "session_hash"
    ]
    if len(names) != 1:
        raise refuse("`session_hash` must be given exactly once.", "session_hash")
    return names[0]


def _event(body: bytes) -> dict[str, Any]:
    """Parse an event. Raises ApiError if it is not JSON or has no `session_hash`."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise refuse("The body is not JSON.") from None
    if not isinstance(found, dict) or not isinstance(found.get("session_hash"), str):
        raise refuse("`session_hash` must be a string.", "session_hash")
    return {field: found[field] for field in (*FIELDS, "session_hash") if field in found}


def _with_body(scope: Scope, receive: Receive, body: bytes) -> tuple[Scope, Receive]:
    """Return the request with its body replaced. After the body, the original `receive` is used."""
    headers = [(key, value) for key, value in scope["headers"] if key not in (b"content-length", b"content-type")]
    headers += [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return {**scope, "headers": headers, "query_string": b""}, replayed
