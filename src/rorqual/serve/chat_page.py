"""The chat page: static files at `/`, which need no key. The page's scripts call the API with the key that the user enters.

The files of the chat page are the same for every server and reveal nothing about the model. The server stores no data for the
page.
"""

from __future__ import annotations

from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

FILES = Path(__file__).parent / "page"
HEADERS = {
    # A model may write markup with scripts or links. The browser must neither run the scripts nor contact other hosts.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


class ChatPage:
    """ASGI application that serves the files of the chat page. `path` is the metrics label of requests for files of the chat
    page."""

    path = "page"

    def __init__(self) -> None:
        self._files = StaticFiles(directory=FILES, html=True)
        self._paths = {"/", *(f"/{file.relative_to(FILES).as_posix()}" for file in FILES.rglob("*") if file.is_file())}

    def has_file_for(self, scope: Scope) -> bool:
        """Return whether a request is for a file of the chat page."""
        return scope["method"] in ("GET", "HEAD") and scope["path"] in self._paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._files(scope, receive, send_with_headers)
