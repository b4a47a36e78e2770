"""The chat page at `/` and its login. The user enters an API key once; then an HttpOnly cookie authenticates the page.

The cookie gives access only to the page. API routes accept only API keys, and the page calls the API inside this
process. Cookies ignore ports, so other servers on the same host receive the cookie. Therefore the cookie contains a
random session token instead of the key. The session token is valid only in the server process that created it.
"""

from __future__ import annotations

import asyncio
import html
import importlib.util
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from rorqual.core.errors import ConfigError
from rorqual.serve import ui_chat
from rorqual.serve.app import GONE, Edge, framed_twice
from rorqual.serve.errors import ApiError
from rorqual.serve.exchange import ClientDisconnected
from rorqual.serve.service import Service
from rorqual.serve.ui_gate import DATA, HEARTBEAT, Pages

FILES = Path(__file__).parent / "page"
REMEDY = 'pip install "rorqual[ui]"'
LIFETIME = 12 * 3600.0
"""Seconds until a login expires."""
MOST_LOGINS = 64
"""Maximum number of logins per tenant. Beyond this number, a new login ends the oldest login."""
MOST_ASKED = 262_144
"""Maximum bytes of a request from the page. Gradio parses requests in the event loop, so a large request would delay
all others."""
LOGIN_BYTES, LOGIN_SECONDS = 4096, 10.0
API = re.compile(r"/(v1(/.*)?|health|metrics|livez)", re.DOTALL)
HEADERS = {
    # A model may generate <img src=...>. The browser must not contact other hosts because of generated text.
    "content-security-policy": (
        "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "font-src 'self' data:; connect-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'self'; frame-ancestors 'none'"
    ),
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


@dataclass(frozen=True)
class Login:
    """A tenant's login to the chat page. The login expires when the clock of `Sessions` reaches `until`.

    `ended` is set when the login is closed.
    """

    tenant: str
    until: float
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Sessions:
    """The current logins, each stored under its session token. `clock` returns the time in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._logins: dict[str, Login] = {}

    def open(self, tenant: str) -> str:
        """Create a login and return its session token."""
        now = self._clock()
        for old in [token for token, login in self._logins.items() if login.until <= now]:
            self.close(old)
        own = [token for token, login in self._logins.items() if login.tenant == tenant]
        for old in own[: max(0, len(own) - MOST_LOGINS + 1)]:
            self.close(old)
        token = secrets.token_urlsafe(32)
        self._logins[token] = Login(tenant, now + LIFETIME)
        return token

    def login(self, token: str) -> Login | None:
        """Return the login of a session token, or None if the token is unknown or expired. A token has 256 random bits."""
        login = self._logins.get(token)
        return login if login is not None and self._clock() < login.until else None

    def close(self, token: str) -> None:
        """End a login and close its open streams."""
        if (login := self._logins.pop(token, None)) is not None:
            login.ended.set()


class Page:
    """ASGI middleware that serves the chat page. API requests and all requests with a key are passed on to `edge`.

    `wanted`: with None, the page is served if Gradio is installed. Otherwise, a page that explains how to install
    Gradio is served. With `wanted` True, ConfigError is raised if Gradio is not installed. With `wanted` False, the
    page is off.
    """

    def __init__(self, edge: Edge, service: Service, wanted: bool | None = None) -> None:
        installed = importlib.util.find_spec("gradio") is not None
        if wanted and not installed:
            raise ConfigError("ui=true needs gradio, which is not installed", where="ui", remedy=REMEDY)
        self.edge, self.service = edge, service
        self.off, self.installed = wanted is False, installed
        self.sessions = Sessions()
        self.mounted = ui_chat.Mounted(
            self._api, service.name, service.defaults.temperature, service.chat.thinks, service.prompts
        )
        self.pages = Pages(self.mounted.forget)
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Close the page's heartbeat streams and Gradio's background tasks. The server calls this method when it
        stops."""
        self._closing.set()
        self.mounted.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if self.off or scope["type"] != "http" or framed_twice(scope):
            await self.edge(scope, receive, send)
            return
        if "authorization" in headers or API.fullmatch(scope["path"]):
            await self.edge(scope, receive, send)
            return
        token = _cookie(headers, _cookie_name(scope))
        login = self.sessions.login(token)
        if login is None and "text/html" not in headers.get("accept", ""):
            await self.edge(scope, receive, send)  # `edge` refuses requests without a key
            return
        status = 0

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            await self._answer(scope, receive, guarded, token, login)
        finally:
            self.service.metrics.requests["page", status] += 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send, token: str, login: Login | None) -> None:
        request = Request(scope, receive)
        response: Response
        if not _same_origin(request):
            response = _text(403, "The request comes from another site.")
        elif scope["path"] == "/login" and request.method == "POST":
            response = await self._login(request)
        elif login is None:
            response = self._form()
        elif scope["path"] == "/login":
            response = RedirectResponse("/", 303)
        elif scope["path"] == "/logout" and request.method == "POST":
            self.sessions.close(token)
            response = RedirectResponse("/", 303)
            response.delete_cookie(_cookie_name(scope), httponly=True, samesite="strict")
        elif request.method not in ("GET", "HEAD") and not self._fits(request):
            response = _text(413, f"The request is longer than {min(self.service.max_body, MOST_ASKED)} bytes.")
        else:
            try:
                scope, receive = await self.pages.bind(scope, receive, login.tenant, self.service)
            except ApiError as error:  # Gradio's page shows `detail`
                response = JSONResponse({"detail": error.message, **error.body()}, error.status)
            except ClientDisconnected:
                response = Response(status_code=GONE)
            else:
                await self._gradio(scope, receive, send, login)
                return
        await response(scope, receive, send)

    def _fits(self, request: Request) -> bool:
        length = request.headers.get("content-length", "")
        return length.isdecimal() and len(length) < 16 and int(length) <= min(self.service.max_body, MOST_ASKED)

    async def _login(self, request: Request) -> Response:
        body = await _login_body(request)
        if body is None:
            return self._form("This is not a key.")
        [key] = parse_qs(body.decode("utf-8", "replace")).get("key", [""])[:1]
        tenant = self.service.keys.tenant(key.strip())
        if tenant is None:
            return self._form("This server does not know this key.")
        response = RedirectResponse("/", 303)
        response.set_cookie(
            _cookie_name(request.scope), self.sessions.open(tenant), max_age=int(LIFETIME),
            httponly=True, samesite="strict", secure=request.url.scheme == "https",
        )  # fmt: skip
        return response

    def _form(self, error: str = "") -> Response:
        """Return the login form, or instructions to install Gradio. Both pages are public and reveal nothing about the model."""
        name = "login.html" if self.installed else "absent.html"
        text = (FILES / name).read_text(encoding="utf-8").replace("{error}", html.escape(error))
        text = text.replace("{remedy}", html.escape(REMEDY))
        return HTMLResponse(text, 401, headers={"www-authenticate": "Bearer", "cache-control": "no-store"})

    async def _gradio(self, scope: Scope, receive: Receive, send: Send, login: Login) -> None:
        # A browser that closes its sending side has disconnected.
        scope.setdefault("state", {}).update(tenant=login.tenant, leaves_at_eof=True)
        app = await self.mounted.app()
        path, ends = scope["path"], [login.ended]
        if path.startswith(HEARTBEAT):
            ends.append(self._closing)
        elif path != DATA:
            await app(scope, receive, send)
            return
        is_open = False

        async def watched(message: Message) -> None:
            nonlocal is_open
            is_open = message["type"] == "http.response.start" or bool(message.get("more_body"))
            await send(message)

        # Starlette reads disconnects from `receive` only if the ASGI version is below 2.4.
        asgi = {**scope["asgi"], "spec_version": "2.3"}
        await app({**scope, "asgi": asgi}, _until(receive, ends), watched)
        if is_open:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _api(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the API routes for an authenticated tenant, and count the request in the metrics as `Edge` does."""
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.edge.app(scope, receive, counted)
        finally:
            self.service.metrics.requests[scope["path"], status] += 1


def _until(receive: Receive, ends: Sequence[asyncio.Event]) -> Receive:
    """Wrap `receive` so that it returns a disconnect message when one of the events `ends` is set."""

    async def received() -> Message:
        message, ending = asyncio.ensure_future(receive()), [asyncio.ensure_future(end.wait()) for end in ends]
        try:
            await asyncio.wait((message, *ending), return_when=asyncio.FIRST_COMPLETED)
            return {"type": "http.disconnect"} if any(end.is_set() for end in ends) else message.result()
        finally:
            for each in (message, *ending):
                each.cancel()

    return received


async def _login_body(request: Request) -> bytes | None:
    """Return the body of a login request, or None if it is too long or does not arrive in time."""
    body = b""
    try:
        async with asyncio.timeout(LOGIN_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > LOGIN_BYTES:
                    return None
    except (TimeoutError, ClientDisconnect):
        return None
    return body


def _cookie_name(scope: Scope) -> str:
    """Return the name of the cookie, which contains the port because servers on the same host share cookies."""
    server = scope.get("server") or ("", 0)
    return f"rorqual-{server[1] or 0}"


def _cookie(headers: Headers, name: str) -> str:
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return "" if cookie is None else cookie.value


def _same_origin(request: Request) -> bool:
    """Return whether a request was sent by this page and not by a page of another origin. GET and HEAD are always
    allowed.

    This CSRF check is needed in addition to SameSite=Strict, which allows requests from other ports of this host.
    """
    if request.method in ("GET", "HEAD"):
        return True
    origin, host = request.headers.get("origin", ""), request.headers.get("host", "")
    return bool(host) and origin.partition("://")[2] == host


def _text(status: int, text: str) -> Response:
    return Response(text, status, media_type="text/plain; charset=utf-8")
