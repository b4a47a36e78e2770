"""The request path that all generating routes share: parse the body, submit prompts, return one JSON object or an event stream.

A route supplies a `Shape`, which builds its response objects. Work whose size depends on the request or the reply runs in
the tenant's thread, because all streams share the event loop.
"""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

from fastapi import Request, Response

from rorqual.data.chat.stream import Piece
from rorqual.serve.bodies import body_of
from rorqual.serve.errors import ApiError
from rorqual.serve.exchange import (
    COMMENT,
    DONE,
    EventStream,
    Sliced,
    event,
    half_closed,
    header_of,
    unless_gone,
    written,
)
from rorqual.serve.limits import MAX_VALUES, too_large
from rorqual.serve.replies import Choice, Reply
from rorqual.serve.schemas import Sampling, read
from rorqual.serve.service import Service
from rorqual.serve.wire import Ask, PackedAsk, pack

LONG = 1 << 14
"""Events of more characters are serialized in a thread."""
ENTRY = 128
"""Approximate number of characters of one log-probability entry."""
W = TypeVar("W", bound=Sampling)


class Shape(ABC, Generic[W]):
    """Builds one route's response objects for one request.

    `prefix` starts the response id. `whole` and `part` are the `object` types of a response and of a stream chunk.
    """

    prefix: ClassVar[str]
    whole: ClassVar[str]
    part: ClassVar[str]

    def __init__(self, service: Service, wanted: W) -> None:
        self.service, self.wanted = service, wanted

    @abstractmethod
    def texts(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (parameter, texts). The texts of one pair together must fit in the context."""

    def ignored(self) -> list[str]:
        """Return the fields of this request that have no effect with this model."""
        return []

    @abstractmethod
    def asks(self) -> list[Ask]:
        """Return one engine request per prompt. Raises ApiError if the request is invalid."""

    @abstractmethod
    def forget(self) -> None:
        """Free what only the prompt needed, because generation may take long."""

    @abstractmethod
    def new(self) -> Choice:
        """Return an empty choice."""

    @abstractmethod
    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """Return the JSON object of a complete choice."""

    def more(self, choices: list[Choice]) -> dict[str, Any]:
        """Return additional top-level fields of a complete response."""
        return {}

    @abstractmethod
    def parts(self, index: int, piece: Piece, choice: Choice) -> Iterator[dict[str, Any]]:
        """Yield the `choices` entries of the events for one piece. A choice has a finish reason at its last piece."""

    def size(self, index: int, piece: Piece, choice: Choice) -> int:
        """Return the approximate number of characters of these events."""
        text = len(piece.content) + len(piece.reasoning) + sum(len(one.arguments) for one in piece.tools)
        return text + ENTRY * len(choice.told) * (1 + (self.wanted.top or 0))

    def envelope(self, kind: str) -> dict[str, Any]:
        """Return the fields around the choices: id, object, created and model."""
        return {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": self.service.name,
        }


@dataclass(frozen=True)
class Prepared(Generic[W]):
    """A parsed request.

    `bound`: the parameter that constrains the reply by a grammar, if any. `ignored`: names of fields without effect.
    """

    shape: Shape[W]
    asks: list[PackedAsk]
    bound: str | None
    ignored: list[str]


def _prepared(service: Service, schema: type[W], kind: type[Shape[W]], parts: list[bytes]) -> Prepared[W] | ApiError:
    """Parse the body in the tenant's thread.

    An ApiError is returned instead of raised, because a raised one keeps the frames, and with them the body, alive.
    """
    try:
        body = b"".join(parts)
        parts.clear()
        wanted, ignored = read(schema, body)
        info = service.check_model(wanted.model)
        shape = kind(service, wanted)
        for param, texts in shape.texts():
            service.check_size(texts, param, info)
        asks = shape.asks()
        service.check_total(asks, "prompt")
        _check_told(wanted, asks)
        found = Prepared(shape, [pack(ask) for ask in asks], wanted.bound, [*ignored, *shape.ignored()])
        shape.forget()
        return found
    except ApiError as error:
        return error.alone()


def _check_told(wanted: Sampling, asks: list[Ask]) -> None:
    """Limit log-probabilities in a response that is not streamed, because it is held in memory as a whole."""
    told = sum(ask.params.n * ask.params.max_tokens for ask in asks) * (1 + (wanted.top or 0))
    if wanted.top is not None and not wanted.stream and told > MAX_VALUES:
        what = "log-probabilities in one response (n * max_tokens * (1 + top_logprobs))"
        raise too_large("logprobs", told, what, MAX_VALUES, "Set a smaller max_tokens or stream: true.")


async def answer(request: Request, schema: type[W], kind: type[Shape[W]]) -> Response:
    """Answer a request of any generating route."""
    tenant: str = request.state.tenant
    service: Service = request.app.state.service
    with service.bridge.place(tenant):
        async with body_of(request, service.max_body, service.bodies, tenant) as parts:
            work = partial(_prepared, service, schema, kind, parts)
            found = await unless_gone(request, service.beside(tenant, work))
    if isinstance(found, ApiError):
        raise found
    headers = header_of(found.ignored)
    if found.shape.wanted.stream:
        return EventStream(_events(request, found, tenant), headers)
    return Sliced(await unless_gone(request, _whole(found, tenant)), headers=headers)


def _reply(shape: Shape[W], job: Any) -> Reply:
    service = shape.service
    return Reply(job, service.chat, shape.new, service.metrics, beside=partial(service.beside, job.tenant))


async def _whole(asked: Prepared[W], tenant: str) -> bytes:
    shape = asked.shape
    with shape.service.bridge.job(asked.asks, tenant, asked.bound) as job:
        reply = _reply(shape, job)
        await reply.whole()
    return await shape.service.beside(tenant, partial(_body, shape, reply))


def _body(shape: Shape[W], reply: Reply) -> bytes:
    choices = [shape.choice(index, choice) for index, choice in enumerate(reply.choices)]
    envelope = shape.envelope(shape.whole)
    return written({**envelope, "choices": choices, "usage": reply.usage(), **shape.more(reply.choices)})


async def _events(request: Request, asked: Prepared[W], tenant: str) -> AsyncGenerator[bytes, None]:
    shape, wanted = asked.shape, asked.shape.wanted
    service = shape.service
    envelope = shape.envelope(shape.part)
    with_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
    extra: dict[str, Any] = {"usage": None} if with_usage else {}

    def events(index: int, piece: Piece, choice: Choice) -> list[bytes]:
        return [event({**envelope, "choices": [part], **extra}) for part in shape.parts(index, piece, choice)]

    with service.bridge.job(asked.asks, tenant, asked.bound, streamed=True) as job:
        reply = _reply(shape, job)
        async with aclosing(reply.pieces(service.keep_alive, partial(half_closed, request.scope))) as pieces:
            async for step in pieces:
                if step is None:
                    yield COMMENT
                    continue
                index, piece = step
                job.sent = True
                work = partial(events, index, piece, reply.choices[index])
                long = shape.size(index, piece, reply.choices[index]) > LONG
                for data in await service.beside(tenant, work) if long else work():
                    yield data
    if with_usage:
        usage = await service.beside(tenant, reply.usage)
        yield event({**envelope, "choices": [], "usage": usage})
    yield DONE
