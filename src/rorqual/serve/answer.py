"""How every generating route answers: a request read, its prompts asked, one JSON object or a stream of events given back.

A route brings a `Shape`: how its objects look. Everything else is here once.
"""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from rorqual.serve.exchange import COMMENT, DONE, EventStream, event, header_of, unless_gone
from rorqual.serve.reading import Piece
from rorqual.serve.replies import Choice, Reply
from rorqual.serve.schemas import Sampling
from rorqual.serve.service import Service
from rorqual.serve.wire import Ask

LONG = 1 << 14
"""Bytes of a body from which on its texts are cut into tokens in a thread."""


class Shape(ABC):
    """The objects of one route, for one request."""

    param: ClassVar[str]
    prefix: ClassVar[str]
    whole: ClassVar[str]
    part: ClassVar[str]

    def __init__(self, service: Service) -> None:
        self.service = service

    @abstractmethod
    def texts(self) -> list[list[str]]:
        """Of each prompt what text it will hold; `param` is where it stands."""

    @abstractmethod
    def asks(self) -> list[Ask]:
        """What the engine is asked, one for each prompt; a request that cannot be meant is refused."""

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

    def envelope(self, kind: str) -> dict[str, Any]:
        """What stands around the choices."""
        return {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": self.service.name,
        }


async def answer(request: Request, shape: Shape, wanted: Sampling, ignored: list[str], size: int) -> Response:
    """The answer to a request of any shape, whose body had `size` bytes."""
    tenant: str = request.state.tenant
    service = shape.service
    info = service.check_model(wanted.model)
    for prompt in shape.texts():
        service.check_size(prompt, shape.param, info)
    with service.bridge.place(tenant):
        # A long text takes the tokenizer a while: beside the loop, which all streams share. It lets go of the interpreter.
        long = size > LONG
        asks = await unless_gone(request, service.beside(tenant, shape.asks)) if long else shape.asks()
    headers = header_of(ignored)
    if wanted.stream:
        return EventStream(_events(shape, wanted, asks, tenant), headers)
    return await unless_gone(request, _whole(shape, asks, tenant, wanted.bound, headers))


def _reply(shape: Shape, job: Any) -> Reply:
    return Reply(job, shape.service.chat, shape.new, shape.service.metrics)


async def _whole(
    shape: Shape, asks: list[Ask], tenant: str, bound: str | None, headers: dict[str, str]
) -> JSONResponse:
    with shape.service.bridge.job(asks, tenant, bound) as job:
        reply = _reply(shape, job)
        await reply.whole()

    def written() -> JSONResponse:
        choices = [shape.choice(index, choice) for index, choice in enumerate(reply.choices)]
        body = {**shape.envelope(shape.whole), "choices": choices, "usage": reply.usage(), **shape.more(reply.choices)}
        return JSONResponse(body, headers=headers)

    return await shape.service.beside(tenant, written) if _scored(asks) else written()


def _scored(asks: list[Ask]) -> bool:
    """Whether an answer grows with its prompts, so that it is written beside the loop."""
    return any(ask.prompt_logprobs is not None for ask in asks)


async def _events(shape: Shape, wanted: Sampling, asks: list[Ask], tenant: str) -> AsyncGenerator[str, None]:
    envelope = shape.envelope(shape.part)
    with_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
    extra: dict[str, Any] = {"usage": None} if with_usage else {}
    with shape.service.bridge.job(asks, tenant, wanted.bound) as job:
        reply = _reply(shape, job)
        async with aclosing(reply.pieces(shape.service.keep_alive)) as pieces:
            async for step in pieces:
                if step is None:
                    yield COMMENT
                    continue
                index, piece = step
                job.sent = True

                def written(index: int = index, piece: Piece = piece) -> list[str]:
                    parts = shape.parts(index, piece, reply.choices[index])
                    return [event({**envelope, "choices": [part], **extra}) for part in parts]

                for text in await shape.service.beside(tenant, written) if _scored(asks) else written():
                    yield text
    if with_usage:
        yield event({**envelope, "choices": [], "usage": reply.usage()})
    yield DONE
