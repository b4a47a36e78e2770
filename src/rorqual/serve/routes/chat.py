"""`POST /v1/chat/completions`"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from rorqual.serve.bridge import Job
from rorqual.serve.exchange import COMMENT, DONE, EventStream, body_of, event, header_of, unless_gone
from rorqual.serve.reading import Piece, Reader
from rorqual.serve.replies import Choice, Reply
from rorqual.serve.schemas import ChatRequest, read
from rorqual.serve.service import Service
from rorqual.serve.wire import Ask

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """A conversation, continued."""
    service: Service = request.app.state.service
    tenant: str = request.state.tenant
    wanted, ignored = read(ChatRequest, await body_of(request, service.max_body))
    ask = service.ask(wanted, service.prompt_of(wanted), "messages")
    headers = header_of(ignored)
    if wanted.stream:
        return EventStream(_events(service, wanted, ask, tenant), headers)
    return JSONResponse(await unless_gone(request, _whole(service, wanted, ask, tenant)), headers=headers)


def _reply(service: Service, wanted: ChatRequest, job: Job) -> Reply:
    def reader() -> Reader:
        return Reader.of_chat(service.chat, wanted.thinking)

    return Reply(job, service.chat, reader, wanted.stops, service.metrics)


def _envelope(service: Service, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": service.name,
    }


async def _whole(service: Service, wanted: ChatRequest, ask: Ask, tenant: str) -> dict[str, Any]:
    with service.bridge.job(ask, tenant) as job:
        reply = _reply(service, wanted, job)
        await reply.whole()
    choices = [_choice(index, choice) for index, choice in enumerate(reply.choices)]
    return {**_envelope(service, "chat.completion"), "choices": choices, "usage": reply.usage()}


def _choice(index: int, choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.content, "refusal": None}
    if choice.reader.thought:
        message["reasoning_content"] = choice.reasoning
    return {"index": index, "message": message, "logprobs": None, "finish_reason": choice.reason}


async def _events(service: Service, wanted: ChatRequest, ask: Ask, tenant: str) -> AsyncGenerator[str, None]:
    envelope = _envelope(service, "chat.completion.chunk")
    with_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
    extra: dict[str, Any] = {"usage": None} if with_usage else {}
    begun: set[int] = set()
    with service.bridge.job(ask, tenant) as job:
        reply = _reply(service, wanted, job)
        async with aclosing(reply.pieces(service.keep_alive)) as pieces:
            async for step in pieces:
                if step is None:
                    yield COMMENT
                    continue
                index, piece = step
                job.sent = True
                delta = ({} if index in begun else {"role": "assistant"}) | _delta(piece)
                begun.add(index)
                if delta:
                    yield event({**envelope, "choices": [_part(index, delta, None)], **extra})
                if (reason := reply.choices[index].reason) is not None:
                    yield event({**envelope, "choices": [_part(index, {}, reason)], **extra})
    if with_usage:
        yield event({**envelope, "choices": [], "usage": reply.usage()})
    yield DONE


def _delta(piece: Piece) -> dict[str, str]:
    fields = {"reasoning_content": piece.reasoning, "content": piece.content}
    return {name: text for name, text in fields.items() if text}


def _part(index: int, delta: dict[str, str], reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
