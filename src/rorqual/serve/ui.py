"""The chat page at `/`, and its door: a key is typed once, and a cookie that no script can read stands for it on the page's own paths.

The cookie opens nothing but the page: the API's routes take keys alone, and the page asks the API in this process. Other servers on
the same host see the cookie too (cookies know no ports), so it is not the key but a word that means nothing elsewhere, and dies with the server.
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
from rorqual.serve.exchange import Gone
from rorqual.serve.service import Service
from rorqual.serve.ui_gate import DATA, HEARTBEAT, Pages

FILES = Path(__file__).parent / "page"
REMEDY = 'pip install "rorqual[ui]"'
LIFETIME = 12 * 3600.0
"""Seconds that a login lasts."""
MOST_LOGINS = 64
"""Of one tenant at a time; the oldest ends."""
MOST_ASKED = 262_144
"""Bytes of what the page sends at once: a question. Gradio reads it in the event loop, which all share."""
LOGIN_BYTES, LOGIN_SECONDS = 4096, 10.0
API = re.compile(r"/(v1(/.*)?|health|metrics|livez)", re.DOTALL)
HEADERS = {
    # A model may write <img src=...>: nothing that it writes makes the browser ask anybody else.
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
    """A tenant until a time in seconds, or until `ended` is set."""

    tenant: str
    until: float
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Sessions:
    """Who is logged in. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[str, Login] = {}

    def open(self, tenant: str) -> str:
        """A new word for a tenant."""
        now = self._clock()
        for old in [word for word, login in self._held.items() if login.until <= now]:
            self.close(old)
        own = [word for word, login in self._held.items() if login.tenant == tenant]
        for old in own[: max(0, len(own) - MOST_LOGINS + 1)]:
            self.close(old)
        word = secrets.token_urlsafe(32)
        self._held[word] = Login(tenant, now + LIFETIME)
        return word

    def login(self, word: str) -> Login | None:
        """Whose word it is; None for one that is unknown or too old. A guess has 256 bits to find, and no shorter way."""
        login = self._held.get(word)
        return login if login is not None and self._clock() < login.until else None

    def close(self, word: str) -> None:
        """End a login, and the streams that were opened with it."""
        if (login := self._held.pop(word, None)) is not None:
            login.ended.set()


class Page:
    """Stands before the API's edge and takes what belongs to the page; everything else, and whatever brings a key, goes to the edge.

    `wanted`: None serves the page where Gradio is installed, and says how to get it where not; true asks for it, so that its absence is a
    `ConfigError`; false leaves the edge alone.
    """

    def __init__(self, edge: Edge, service: Service, wanted: bool | None = None) -> None:
        installed = importlib.util.find_spec("gradio") is not None
        if wanted and not installed:
            raise ConfigError("gradio is not installed", where="ui", remedy=REMEDY)
        self.edge, self.service = edge, service
        self.off, self.installed = wanted is False, installed
        self.sessions = Sessions()
        self.mounted = ui_chat.Mounted(self._api, service.name, service.defaults.temperature, service.chat.thinks)
        self.pages = Pages(self.mounted.forget)
        self._closing = asyncio.Event()

    def close(self) -> None:
        """The server stops: streams that would only say that it is still there end now."""
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
        word = _cookie(headers, _name(scope))
        login = self.sessions.login(word)
        if login is None and "text/html" not in headers.get("accept", ""):
            await self.edge(scope, receive, send)  # which refuses it as it refuses everything without a key
            return
        status = 0

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            await self._answer(scope, receive, guarded, word, login)
        finally:
            self.service.metrics.requests["page", status] += 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send, word: str, login: Login | None) -> None:
        request = Request(scope, receive)
        response: Response
        if not _same_origin(request):
            response = _text(403, "Another site sent this.")
        elif scope["path"] == "/login" and request.method == "POST":
            response = await self._login(request)
        elif login is None:
            response = self._form()
        elif scope["path"] == "/login":
            response = RedirectResponse("/", 303)
        elif scope["path"] == "/logout" and request.method == "POST":
            self.sessions.close(word)
            response = RedirectResponse("/", 303)
            response.delete_cookie(_name(scope), httponly=True, samesite="strict")
        elif request.method not in ("GET", "HEAD") and not self._fits(request):
            response = _text(413, f"The request is longer than {min(self.service.max_body, MOST_ASKED)} bytes.")
        else:
            try:
                scope, receive = await self.pages.bind(scope, receive, login.tenant, self.service)
            except ApiError as error:  # Gradio's page shows `detail`
                response = JSONResponse({"detail": error.message, **error.body()}, error.status)
            except Gone:
                response = Response(status_code=GONE)
            else:
                await self._gradio(scope, receive, send, login)
                return
        await response(scope, receive, send)

    def _fits(self, request: Request) -> bool:
        length = request.headers.get("content-length", "")
        return length.isdecimal() and len(length) < 16 and int(length) <= min(self.service.max_body, MOST_ASKED)

    async def _login(self, request: Request) -> Response:
        body = await _short(request)
        if body is None:
            return self._form("This is no key.")
        [key] = parse_qs(body.decode("utf-8", "replace")).get("key", [""])[:1]
        tenant = self.service.keys.tenant(key.strip())
        if tenant is None:
            return self._form("This key is not known here.")
        response = RedirectResponse("/", 303)
        response.set_cookie(
            _name(request.scope), self.sessions.open(tenant), max_age=int(LIFETIME),
            httponly=True, samesite="strict", secure=request.url.scheme == "https",
        )  # fmt: skip
        return response

    def _form(self, error: str = "") -> Response:
        """What anybody sees: it says nothing of the model."""
        name = "login.html" if self.installed else "absent.html"
        text = (FILES / name).read_text(encoding="utf-8").replace("{error}", html.escape(error))
        text = text.replace("{remedy}", html.escape(REMEDY))
        return HTMLResponse(text, 401, headers={"www-authenticate": "Bearer", "cache-control": "no-store"})

    async def _gradio(self, scope: Scope, receive: Receive, send: Send, login: Login) -> None:
        scope.setdefault("state", {}).update(
            tenant=login.tenant, leaves_at_eof=True
        )  # no browser closes its side alone
        app = await self.mounted.app()
        path, ends = scope["path"], [login.ended]
        if path.startswith(HEARTBEAT):
            ends.append(self._closing)
        elif path != DATA:
            await app(scope, receive, send)
            return
        open_ = False

        async def watched(message: Message) -> None:
            nonlocal open_
            open_ = message["type"] == "http.response.start" or bool(message.get("more_body"))
            await send(message)

        # Before version 2.4 of the protocol an application learns from `receive` that nobody listens.
        asgi = {**scope["asgi"], "spec_version": "2.3"}
        await app({**scope, "asgi": asgi}, _until(receive, ends), watched)
        if open_:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _api(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The routes behind the edge, for a tenant who is known, counted as the edge counts them."""
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
    """`receive`; once one of `ends` is set, the client has left."""

    async def received() -> Message:
        message, over = asyncio.ensure_future(receive()), [asyncio.ensure_future(end.wait()) for end in ends]
        try:
            await asyncio.wait((message, *over), return_when=asyncio.FIRST_COMPLETED)
            return {"type": "http.disconnect"} if any(end.is_set() for end in ends) else message.result()
        finally:
            for each in (message, *over):
                each.cancel()

    return received


async def _short(request: Request) -> bytes | None:
    """The body of a login; None for one that is longer or slower than any key."""
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


def _name(scope: Scope) -> str:
    """Of the cookie. Two servers on one host share its cookies, whatever their ports."""
    server = scope.get("server") or ("", 0)
    return f"rorqual-{server[1] or 0}"


def _cookie(headers: Headers, name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _same_origin(request: Request) -> bool:
    """Whether a request that changes something comes from this very page. SameSite=Strict still lets other ports of this host through."""
    if request.method in ("GET", "HEAD"):
        return True
    origin, host = request.headers.get("origin", ""), request.headers.get("host", "")
    return bool(host) and origin.partition("://")[2] == host


def _text(status: int, text: str) -> Response:
    return Response(text, status, media_type="text/plain; charset=utf-8")
