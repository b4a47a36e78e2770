"""`POST /v1/completions`: plain text, continued."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from rorqual.core.errors import RorqualError
from rorqual.serve.bridge import Job
from rorqual.serve.errors import refuse
from rorqual.serve.exchange import COMMENT, DONE, EventStream, body_of, event, header_of, unless_gone
from rorqual.serve.reading import Reader
from rorqual.serve.replies import Reply
from rorqual.serve.schemas import TextRequest, read
from rorqual.serve.service import Service
from rorqual.serve.wire import Ask

router = APIRouter()


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    """A text, continued. Ids are fed as they are; text begins as the model's texts begin."""
    service: Service = request.app.state.service
    tenant: str = request.state.tenant
    wanted, ignored = read(TextRequest, await body_of(request, service.max_body))
    ask = service.ask(wanted, _prompt(service, wanted), "prompt")
    headers = header_of(ignored)
    if wanted.stream:
        return EventStream(_events(service, wanted, ask, tenant), headers)
    return JSONResponse(await unless_gone(request, _whole(service, wanted, ask, tenant)), headers=headers)


def _prompt(service: Service, wanted: TextRequest) -> list[int]:
    if not isinstance(wanted.prompt, str):
        return wanted.prompt
    chat = service.chat
    try:
        return [*([] if chat.bos is None else [chat.bos]), *chat.tokenizer.encode(wanted.prompt)]
    except RorqualError as error:
        raise refuse(f"{error.what}. {error.remedy}", "prompt") from None


def _reply(service: Service, wanted: TextRequest, job: Job) -> Reply:
    return Reply(job, service.chat, lambda: Reader.of_text(service.chat), wanted.stops, service.metrics)


def _envelope(service: Service) -> dict[str, Any]:
    return {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": service.name,
    }


def _choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


async def _whole(service: Service, wanted: TextRequest, ask: Ask, tenant: str) -> dict[str, Any]:
    with service.bridge.job(ask, tenant) as job:
        reply = _reply(service, wanted, job)
        await reply.whole()
    choices = [_choice(index, choice.content, choice.reason) for index, choice in enumerate(reply.choices)]
    return {**_envelope(service), "choices": choices, "usage": reply.usage()}


async def _events(service: Service, wanted: TextRequest, ask: Ask, tenant: str) -> AsyncGenerator[str, None]:
    envelope = _envelope(service)
    with service.bridge.job(ask, tenant) as job:
        reply = _reply(service, wanted, job)
        async with aclosing(reply.pieces(service.keep_alive)) as pieces:
            async for step in pieces:
                if step is None:
                    yield COMMENT
                    continue
                index, piece = step
                job.sent = True
                choice = _choice(index, piece.content, reply.choices[index].reason)
                yield event({**envelope, "choices": [choice]})
    if wanted.stream_options is not None and wanted.stream_options.include_usage:
        yield event({**envelope, "choices": [], "usage": reply.usage()})
    yield DONE
