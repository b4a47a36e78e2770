"""The server's ASGI application: its routes, and middleware that authenticates and counts requests and formats errors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rorqual.serve.chat_page import ChatPage
from rorqual.serve.cors import with_cors
from rorqual.serve.errors import ApiError, loading_error, stopping_error
from rorqual.serve.http_responses import request_id
from rorqual.serve.logs import say
from rorqual.serve.routes import chat, completions, rollout, state
from rorqual.serve.service import Service
from rorqual.serve.wire import TENANT

LONGEST_PATH = 200
"""Maximum length of a path in an error message."""
GONE = 499
"""HTTP status that the metrics record if a client disconnects before the response. nginx uses the same status code."""
OTHER = "other"
"""Metrics label of requests to unknown routes."""
LIVEZ = "/livez"
"""Liveness probe, the only route of the API that needs no key. The route returns 200 with an empty body, even if the engine is down."""
WHILE_LOADING = frozenset({"/health", "/metrics"})
"""Routes with a key that also answer before the model is loaded for the first time."""
ROLLOUT = "/rollout/"
"""Path prefix of the rollout routes. Rollout routes accept only the rollout key, and all other routes reject the rollout key."""


class ApiKeyMiddleware:
    """Middleware that checks the API key before routing, for all paths and methods, known or unknown.

    Only the files of the chat page and the route `LIVEZ` need no API key. `page` is None if the chat page is off.
    """

    def __init__(self, app: ASGIApp, service: Service, page: ChatPage | None = None) -> None:
        self.app, self.service, self.page = app, service, page
        self._answer = with_cors(self._respond, service.cors)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # websockets and lifespan events are not supported
            return
        status, req_id = GONE, request_id(scope)  # counted as GONE if no response starts

        async def count_requests(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = req_id
            await send(message)

        try:
            await (_conflicting_length_error(scope) or self._answer)(scope, receive, count_requests)
        except asyncio.CancelledError:
            # The server stops, and the client still sends the request or reads too slowly. Uvicorn would log a traceback.
            if status == GONE:
                await _api_error_response(scope, stopping_error())(scope, receive, count_requests)
        except Exception as error:
            say(f"request {req_id} raised {type(error).__name__}, a bug")  # uvicorn logs the re-raised error
            raise
        finally:
            self.service.metrics.requests[_route_path(scope), status] += 1

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the router or the chat page, or send an error response."""
        await self._app_for(scope)(scope, receive, send)

    def _app_for(self, scope: Scope) -> ASGIApp:
        if scope["path"] == LIVEZ and scope["method"] in ("GET", "HEAD"):
            return Response()
        if self.page is not None and self.page.has_file_for(scope):
            scope["route"] = self.page
            return self.page
        tenant = self._tenant(scope)
        if tenant is None:
            problem = "The API key is missing or unknown. Send the header Authorization: Bearer KEY."
            error = ApiError(401, problem, code="invalid_api_key")
            return _error_response(scope, error, {"www-authenticate": "Bearer"})
        if tenant != TENANT and (wait := self.service.rate.wait(tenant)) > 0:
            problem = f"This API key has sent too many requests. Try again after {wait:.1f} seconds."
            return _api_error_response(scope, ApiError(429, problem, code="rate_limit_exceeded", wait=wait))
        if scope["path"] not in WHILE_LOADING and not all(bridge.is_loaded for bridge in self.service.bridges):
            return _api_error_response(scope, loading_error())
        scope["state"]["tenant"] = tenant
        return self.app

    def _tenant(self, scope: Scope) -> str | None:
        auth_headers = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(auth_headers) != 1:
            return None
        scheme, _, key = auth_headers[0].decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            return None
        uploads = self.service.uploads
        if uploads is None or not scope["path"].startswith(ROLLOUT):
            return self.service.keys.tenant(key.strip())
        return TENANT if uploads.keys.tenant(key.strip()) is not None else None


def _conflicting_length_error(scope: Scope) -> ASGIApp | None:
    """Return the error response to a request that has both Content-Length and Transfer-Encoding, or None.

    If a proxy trusts one header and this server trusts the other header, part of the body can pass as a second request
    (request smuggling; RFC 9112, section 6.1). After the error response, the connection is closed.
    """
    if not {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
        return None
    problem = "The request has both Content-Length and Transfer-Encoding. Send only one of them."
    return _error_response(scope, ApiError(400, problem, code="two_lengths"), {"connection": "close"})


def _route_path(scope: Scope) -> str:
    route: Any = scope.get("route")
    return getattr(route, "path", OTHER)


def _error_response(scope: Scope, error: ApiError, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({**error.body(), "request_id": request_id(scope)}, status_code=error.status, headers=headers)


def _api_error_response(scope: Scope, error: ApiError) -> JSONResponse:
    return _error_response(scope, error, error.headers)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _api_error_response(request.scope, error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:LONGEST_PATH]
    if error.status_code == 405:
        found = ApiError(405, f"`{path}` has no method {request.method}.", code="method_not_allowed")
    elif error.status_code != 404:  # such as a form that cannot be read
        found = ApiError(error.status_code, f"`{path}`: {error.detail}")
    else:
        problem = f"`{path}` is not a route. GET /openapi.json lists the routes."
        found = ApiError(error.status_code, problem, code="no_such_route")
    return _error_response(request.scope, found, dict(error.headers or {}))


async def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=GONE)


async def _internal_error(request: Request, error: Exception) -> Response:
    # Starlette re-raises the error after it sends this response. The traceback is logged and not sent to the client.
    return _error_response(
        request.scope, ApiError(500, "The server raised an unexpected error. Its log has the traceback.")
    )


def create_app(
    service: Service,
    *,
    with_page: bool = True,
    routers: Sequence[APIRouter] = (chat.router, completions.router),
    more: Sequence[APIRouter] = (),
) -> ApiKeyMiddleware:
    """Build the ASGI application that serves `service`.

    `with_page`: whether to serve the chat page at `/`. `routers`: the routes that generate replies. `more`: further routes.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.service = service
    for router in (*routers, *more, state.router, *([rollout.router] if service.uploads is not None else [])):
        app.include_router(router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_exception_handler(Exception, _internal_error)
    return ApiKeyMiddleware(app, service, ChatPage() if with_page else None)
