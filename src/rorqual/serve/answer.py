"""How every generating route answers: a request read, its prompts asked, one JSON object or a stream of events given back.

A route brings a `Shape`: how its objects look. Everything else is here once. What grows with the request or the reply is done in the
tenant's own thread: the event loop, which all streams share, gets it ready to be sent.
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
"""Characters of an event from which on it is written in a thread."""
ENTRY = 128
"""Characters that a log-probability takes, about."""
W = TypeVar("W", bound=Sampling)


class Shape(ABC, Generic[W]):
    """The objects of one route, for one request."""

    prefix: ClassVar[str]
    whole: ClassVar[str]
    part: ClassVar[str]

    def __init__(self, service: Service, wanted: W) -> None:
        self.service, self.wanted = service, wanted

    @abstractmethod
    def texts(self) -> Iterator[tuple[str, list[str]]]:
        """Texts that must fit the context together, and the parameter that holds them."""

    def ignored(self) -> list[str]:
        """Fields that change nothing for this model."""
        return []

    @abstractmethod
    def asks(self) -> list[Ask]:
        """What the engine is asked, one for each prompt; a request that cannot be meant is refused."""

    @abstractmethod
    def forget(self) -> None:
        """Let go of what only the prompt needed: a reply takes long."""

    @abstractmethod
    def new(self) -> Choice:
        """A choice of which nothing has come yet."""

    @abstractmethod
    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """A whole choice."""

    def more(self, choices: list[Choice]) -> dict[str, Any]:
        """What stands beside the whole choices."""
        return {}

    @abstractmethod
    def parts(self, index: int, piece: Piece, choice: Choice) -> Iterator[dict[str, Any]]:
        """The choices of the events that one piece makes; the last piece comes when the choice has a reason."""

    def size(self, index: int, piece: Piece, choice: Choice) -> int:
        """Characters of these events, about."""
        text = len(piece.content) + len(piece.reasoning) + sum(len(one.arguments) for one in piece.tools)
        return text + ENTRY * len(choice.told) * (1 + (self.wanted.top or 0))

    def envelope(self, kind: str) -> dict[str, Any]:
        """What stands around the choices."""
        return {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": self.service.name,
        }


@dataclass(frozen=True)
class Prepared(Generic[W]):
    """A request that was read: its shape, what the engine is asked, the parameter that binds the answer, and the names of what was ignored."""

    shape: Shape[W]
    asks: list[PackedAsk]
    bound: str | None
    ignored: list[str]


def _prepared(service: Service, schema: type[W], kind: type[Shape[W]], parts: list[bytes]) -> Prepared[W] | ApiError:
    """Everything that grows with a body. A refusal is returned, as it would bring along what it was made from."""
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
    """A whole answer with log-probabilities is in memory at once; a stream is not."""
    told = sum(ask.params.n * ask.params.max_tokens for ask in asks) * (1 + (wanted.top or 0))
    if wanted.top is not None and not wanted.stream and told > MAX_VALUES:
        what = "log-probabilities in one answer (n * max_tokens * (1 + top_logprobs))"
        raise too_large("logprobs", told, what, MAX_VALUES, "Set a smaller max_tokens, or stream: true.")


async def answer(request: Request, schema: type[W], kind: type[Shape[W]]) -> Response:
    """The answer to a request of any shape."""
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
