"""Access control for Gradio: restrict the reachable routes, and give each page session one owner.

Gradio stores a page's state (conversation, running events, event stream) under a `session_hash` that the browser
generates. Gradio does not check who uses the hash, and the hash is not secret, because URLs contain it. Therefore the
first tenant that uses a hash owns the session, and other tenants cannot use this hash. Gradio receives a hash of tenant
and session, so that two tenants never share state.
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
"""Maximum number of page sessions per tenant. Beyond this number, the least recently used session and its conversation are
deleted. Each session takes 25 kB in Gradio."""
OPEN = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|gradio_api/startup-events)|/(assets|static|svelte)/[\w./-]+",
    re.ASCII,
)
"""Gradio's routes without session state. Only the routes in `OPEN` and the routes `JOIN`, `DATA` and `HEARTBEAT` are
allowed, because Gradio's other routes serve files or act as a proxy."""
JOIN, DATA = "/gradio_api/queue/join", "/gradio_api/queue/data"
HEARTBEAT = "/gradio_api/heartbeat/"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
FIELDS = ("data", "event_data", "fn_index", "trigger_id")
"""Fields of an event that are passed on to Gradio. `session_hash` is also passed on."""


class Pages:
    """Page sessions, and the tenant that owns each session. `forget`: a callback that deletes Gradio's state of a
    session."""

    def __init__(self, forget: Callable[[str], None]) -> None:
        self._forget = forget
        self._tenants: dict[str, str] = {}
        self._own: dict[str, dict[str, None]] = {}  # tenant -> its sessions, least recently used first

    def __len__(self) -> int:
        return len(self._tenants)

    def claim(self, tenant: str, name: str) -> str:
        """Assign a session to `tenant`, and return the hash that Gradio uses for the session. Raises ApiError if
        another tenant owns the session."""
        if not NAME.fullmatch(name):
            raise refuse("`session_hash` must be 1 to 64 letters, digits, - and _.", "session_hash")
        if self._tenants.setdefault(name, tenant) != tenant:
            raise ApiError(
                403, "Another tenant opened this page. Reload the page.", param="session_hash", code="not_your_page"
            )
        own = self._own.setdefault(tenant, {})
        own.pop(name, None)
        own[name] = None
        if len(own) > MOST_PAGES:
            oldest = next(iter(own))
            del own[oldest], self._tenants[oldest]
            self._forget(_gradio_hash(tenant, oldest))
        return _gradio_hash(tenant, name)

    async def bind(self, scope: Scope, receive: Receive, tenant: str, service: Service) -> tuple[Scope, Receive]:
        """Return the request that Gradio receives. It contains the session hash from `claim`. Raises ApiError if the
        request is not allowed."""
        path, method = scope["path"], scope["method"]
        if path == JOIN:
            _check_method(method, "POST")
            async with body_of(Request(scope, receive), service.max_body, service.bodies, tenant) as parts:
                event = await service.run_in_thread(tenant, partial(_event, b"".join(parts)))
            event["session_hash"] = self.claim(tenant, event["session_hash"])
            return _with_body(scope, receive, await service.run_in_thread(tenant, lambda: json.dumps(event).encode()))
        if path == DATA:
            _check_method(method, "GET")
            name = self.claim(tenant, _session_hash(scope["query_string"]))
            return {**scope, "query_string": f"session_hash={name}".encode()}, receive
        if path.startswith(HEARTBEAT):
            _check_method(method, "GET")
            path = HEARTBEAT + self.claim(tenant, path.removeprefix(HEARTBEAT))
            return {**scope, "path": path, "raw_path": path.encode(), "query_string": b""}, receive
        if not OPEN.fullmatch(path) or ".." in path:
            raise ApiError(404, "This route does not exist.", code="no_such_route")
        _check_method(method, "GET", "HEAD")
        return {**scope, "query_string": b""}, receive


def _gradio_hash(tenant: str, name: str) -> str:
    return hashlib.sha256(f"{tenant} {name}".encode()).hexdigest()


def _check_method(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise ApiError(405, f"This route does not support {method[:16]}.", code="method_not_allowed")


def _session_hash(query: bytes) -> str:
    names = [
        value for key, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True) if key == "session_hash"
    ]
    if len(names) != 1:
        raise refuse("`session_hash` must be given exactly once.", "session_hash")
    return names[0]


def _event(body: bytes) -> dict[str, Any]:
    """Return the fields of an event that are passed on to Gradio. Raises ApiError if the body is not JSON or lacks `session_hash`."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        raise refuse("The body is not JSON.") from None
    if not isinstance(event, dict) or not isinstance(event.get("session_hash"), str):
        raise refuse("`session_hash` must be a string.", "session_hash")
    return {field: event[field] for field in (*FIELDS, "session_hash") if field in event}


def _with_body(scope: Scope, receive: Receive, body: bytes) -> tuple[Scope, Receive]:
    """Replace the body of a request. Later messages, such as a disconnect, come from the original `receive`."""
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
