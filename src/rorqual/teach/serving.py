"""A server of what `rorqual teach` chose, whatever rung that is, with OpenAI's chat completions API."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from rorqual.core.content_parts import TextPart, first_unsupported_part
from rorqual.core.errors import ConfigError, DataError, RorqualError
from rorqual.core.sampling import PARAMS
from rorqual.engine.remote.engine import RemoteEngine
from rorqual.factory.config import RemoteAccess
from rorqual.serve.app import create_app
from rorqual.serve.bodies import read_body
from rorqual.serve.errors import ApiError, bad_request
from rorqual.serve.http_responses import (
    DONE,
    EventStream,
    SlicedJsonResponse,
    compact_json,
    ignored_fields_header,
    request_id,
    run_unless_disconnected,
    sse_event,
)
from rorqual.serve.logs import say
from rorqual.serve.message_schemas import ChatMessage
from rorqual.serve.options import ServerOptions
from rorqual.serve.schemas import MAX_MESSAGES, ChatRequest, parse_request
from rorqual.serve.server import fields_from_options, listen_with_keys, run_until_stopped
from rorqual.serve.service import Service
from rorqual.teach.answerer import Answer, Answerer, AnswererConfig, load_answerer
from rorqual.teach.contract import abstention, check_length, prompt_of_columns, prompt_of_conversation, warning
from rorqual.teach.fallback import FALLBACK, Fallback
from rorqual.teach.paths import TeachPaths

router = APIRouter()
WITHOUT_EFFECT = frozenset({"seed", "top_p", "top_k", "min_p", "min_p_first", "max_tokens"})
"""Sampling parameters that do not change an answer of temperature 0, and `max_tokens`, which is compared with the answer."""
MAX_COLUMNS = 256
BYTES_PER_TOKEN = 4
"""A rung without a tokenizer counts a token for every `BYTES_PER_TOKEN` bytes of UTF-8, rounded up, and at least one."""


class TaughtRequest(ChatRequest):
    """Body of `POST /v1/chat/completions` for what `rorqual teach` chose.

    `columns`: the texts of the prompt's columns by name, joined as in the training examples. Without `columns`, the last user
    message is the prompt; if a prompt has several columns, it may be a JSON object with the text of each.
    """

    messages: Annotated[list[ChatMessage], Field(max_length=MAX_MESSAGES, fail_fast=True)] = []
    columns: Annotated[dict[str, str | int | float | bool | None], Field(max_length=MAX_COLUMNS)] | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt in the form of the training examples.

    `departs`: names of what the request asks for and does not get, because the answer has the taught form. `headers`: headers
    of the response.
    """

    wanted: TaughtRequest
    text: str
    departs: Sequence[str]
    headers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class AnswererService(Service):
    """The state of a server of an answerer, which answers one prompt after another.

    `queue`: maximum running and waiting requests. When the queue is full, only tenants with fewer than `queue` divided by the
    number of tenants can add a request. `active`: the requests of each tenant. `locks`: one lock per tenant, so that each tenant
    has at most one prompt in the queue of the thread `worker`, and the tenants take turns. `fallback`: the remote model that is
    asked if the answer is not sure enough for the promise, in the thread `remote`.
    """

    requests = (TaughtRequest,)

    answerer: Answerer
    queue: int
    fallback: Fallback | None = None
    active: Counter[str] = field(default_factory=Counter)
    locks: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="answers"))
    remote: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="fallback"))

    def model_details(self) -> dict[str, Any]:
        config = self.answerer.config
        promise = config.promise and config.promise.accuracy
        card = {"rungs": [step.rung for step in config.steps], "promise": promise, "columns": [*config.columns]}
        return card | {"thinks": False, "temperature": 0.0, "examples": []}

    def active_requests(self) -> tuple[Counter[str], Counter[str]]:
        running = Counter(tenant for tenant, lock in self.locks.items() if lock.locked())
        return running, self.active - running

    def close(self) -> None:
        for thread in (self.worker, self.remote):
            thread.shutdown(wait=False, cancel_futures=True)
        super().close()

    @contextmanager
    def reserve_queue_place(self, tenant: str) -> Iterator[None]:
        """Count a request of `tenant` until the `with` block ends. Raises ApiError if the queue has no room for it."""
        share = max(1, self.queue // len({*self.keys.tenants.values()}))
        if (total := self.active.total()) >= self.queue and self.active[tenant] >= share:
            problem = f"The queue is full: {total} requests are running or waiting, the limit is {self.queue}."
            raise ApiError(429, f"{problem} Try again later.", code="queue_full")
        self.active[tenant] += 1
        try:
            yield
        finally:
            self.active[tenant] -= 1

    async def answer(self, prompt: str, tenant: str) -> Answer:
        """Return the answer to a prompt. Raises ApiError if the rung fails."""
        loop = asyncio.get_running_loop()
        async with self.locks[tenant]:
            try:
                [answer] = await loop.run_in_executor(self.worker, self.answerer.answer, [prompt])
            except RorqualError as error:
                self.metrics.failed += 1
                raise ApiError(500, str(error), code="no_answer") from error
        if self.fallback is not None and not answer.sure:
            text = await loop.run_in_executor(self.remote, self.fallback.answer, prompt)
            return answer if text is None else Answer(text, math.nan, FALLBACK, sure=True)
        return answer

    async def respond(self, request: Request, prompt: Prompt) -> Response:
        """Return the response to a prompt. Raises ApiError if the rung fails."""
        tenant, began = request.state.tenant, time.monotonic()
        answer = await run_unless_disconnected(request.receive, self.answer(prompt.text, tenant))
        self.metrics.record_first_token(time.monotonic() - began)
        usage = {"prompt_tokens": count_tokens(prompt.text), "completion_tokens": count_tokens(answer.text)}
        self.metrics.count_tokens(tenant, 0, *usage.values())
        departs = [*prompt.departs]
        if (most := prompt.wanted.max_reply_tokens) is not None and most < usage["completion_tokens"]:
            departs.append("max_tokens")
        headers = {**prompt.headers, **({"x-rorqual-departs": ", ".join(departs)} if departs else {})}
        if departs:
            say(f"request {request_id(request.scope)} is answered in the taught form, without its {', '.join(departs)}")
        reply = _Reply(self, prompt.wanted, answer, usage | {"total_tokens": sum(usage.values())})
        if prompt.wanted.stream:
            return EventStream(reply.events(), headers)
        return SlicedJsonResponse(reply.complete_json(), headers=headers)

    def parse(self, parts: list[bytes]) -> Prompt:
        """Parse a request body. Raises ApiError if the request is invalid, or asks for what no rung can do."""
        wanted, ignored = parse_request(TaughtRequest, b"".join(parts))
        parts.clear()
        if wanted.model != self.name:
            raise self.unknown_model_error(wanted.model)
        _refuse_unsupported(wanted)
        text, departs = _taught_prompt(wanted, self.answerer.config)
        return Prompt(wanted, text, [*departs, *_departing_parameters(wanted)], ignored_fields_header(ignored))


def _refuse_unsupported(wanted: TaughtRequest) -> None:
    """Raise ApiError if the request asks for several answers, for an answer of another form, or for log-probabilities."""
    form = "the answers have the form of the training examples"
    refused = {
        "n": "a prompt has one answer" if wanted.params().n > 1 else "",
        "tools": "an answer calls no tools" if wanted.offered_tools() or wanted.required_calls_grammar() else "",
        wanted.constraining_field or "": form,
        "logprobs": "an answer has a probability, in `rorqual`" if wanted.n_top_logprobs is not None else "",
        "prompt_logprobs": "a prompt has none" if wanted.prompt_top_logprobs else "",
    }
    for name, reason in refused.items():
        if name and reason:
            raise bad_request(f"`{name}` is not supported: {reason}. Leave it out.", name, "unsupported_parameter")


def _taught_prompt(wanted: TaughtRequest, config: AnswererConfig) -> tuple[str, list[str]]:
    """Return the prompt of a request in the taught form, and the names of the parts of the request that are left out."""
    for number, message in enumerate(wanted.messages):
        place = None if message.content is None else first_unsupported_part(message.content, [TextPart])
        if place is not None:
            path = f"messages[{number}].content[{place}]"
            raise bad_request(f"`{path}` is not text. Send parts of type text.", path, "unsupported_value")
    columns, turns = config.columns, [message.to_message() for message in wanted.messages]
    talk = [turn for turn in turns if turn.role != "system"]
    unknown = any(turn.role == "system" and turn.label != config.system for turn in turns)
    departs = ["system"] if unknown and not config.has_system_turns else []
    try:
        if wanted.columns is not None:
            return check_length(prompt_of_columns(wanted.columns, columns), config), departs + ["messages"] * any(
                turn.label for turn in talk
            )
        return prompt_of_conversation(turns, config), departs + ["turns"] * (bool(columns) and len(talk) > 1)
    except DataError as error:
        param = "messages" if wanted.columns is None else "columns"
        raise bad_request(f"`{param}`: {error.what}. {error.remedy}".strip(), param) from None


def _departing_parameters(wanted: TaughtRequest) -> Iterator[str]:
    """Yield the names of the parameters of a request that would change an answer."""
    for name, value in wanted.given_sampling_params().items():
        if name not in WITHOUT_EFFECT and value != PARAMS[name].default:
            yield name
    yield from dict.fromkeys(path.partition(".")[0] for path in wanted.reasoning_modes())


def count_tokens(text: str) -> int:
    """Return the number of tokens that a text counts as in `usage` (see `BYTES_PER_TOKEN`)."""
    return max(1, -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN))


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """Answer the prompt of a request, or abstain."""
    tenant: str = request.state.tenant
    service: AnswererService = request.app.state.service
    with service.reserve_queue_place(tenant):
        async with read_body(request, service.max_body, service.bodies, tenant) as parts:
            prompt = await run_unless_disconnected(
                request.receive, service.run_in_thread(tenant, partial(service.parse, parts))
            )
        return await service.respond(request, prompt)


@dataclass(frozen=True)
class _Reply:
    """The response to a request, as one JSON object or as an event stream."""

    service: AnswererService
    wanted: TaughtRequest
    answer: Answer
    usage: Mapping[str, int]

    def complete_json(self) -> bytes:
        """Return the complete response as JSON."""
        choice = {"index": 0, "message": self._message(), "logprobs": None, "finish_reason": "stop"}
        return compact_json({**self._envelope("chat.completion"), "choices": [choice], "usage": dict(self.usage)})

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the response as server-sent events."""
        envelope = self._envelope("chat.completion.chunk")
        with_usage = self.wanted.stream_options is not None and self.wanted.stream_options.include_usage
        last = {"usage": None} if with_usage else {}
        delta = {name: value for name, value in self._message().items() if value is not None}
        for part, reason in ((delta, None), ({}, "stop")):
            choice = {"index": 0, "delta": part, "logprobs": None, "finish_reason": reason}
            yield sse_event({**envelope, "choices": [choice], **last})
        if with_usage:
            yield sse_event({**envelope, "choices": [], "usage": self.usage})
        yield DONE

    def _envelope(self, kind: str) -> dict[str, Any]:
        promise, is_measured = self.service.answerer.config.promise, self.answer.rung != FALLBACK
        about = {"probability": self.answer.probability if is_measured else None, "rung": self.answer.rung}
        return {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": self.service.name,
            "rorqual": about | {"promise": promise.accuracy if promise and is_measured else None},
        }

    def _message(self) -> dict[str, Any]:
        """Return the message: the answer, or a refusal if the answer is not sure enough for the promise."""
        answer = self.answer
        if refusal := abstention(answer, self.service.answerer.config):
            return {"role": "assistant", "content": None, "refusal": refusal}
        reasoning = {"reasoning_content": answer.reasoning} if answer.reasoning else {}
        return {"role": "assistant", "content": answer.text, "refusal": None, **reasoning}


def serve_answerer(
    folder: Path, address: ServerOptions, *, threads: int, remote: tuple[RemoteEngine, RemoteAccess] | None = None
) -> None:
    """Serve what `rorqual teach` chose in `folder` until a signal stops the server. `remote` is the model of the fallback, with the
    budget. Raises RorqualError if the server cannot start."""
    shared = fields_from_options(address)
    answerer = load_answerer(folder, threads=threads)
    if remote is not None and not answerer.config.may_abstain:
        raise ConfigError(
            "nothing is promised, so no prompt is left to a fallback", where="key 'fallback'", remedy="Leave it out."
        )
    fallback = Fallback(*remote, TeachPaths(folder)) if remote is not None else None
    if fallback is None and (refusal := warning(answerer.config)):
        say(refusal)
    with listen_with_keys(address) as (sock, keys):
        service = AnswererService(
            name=address.name or folder.resolve().name,
            created=int(TeachPaths(folder).answerer.stat().st_mtime),
            keys=keys,
            answerer=answerer,
            queue=address.queue,
            fallback=fallback,
            **shared,
        )
        run_until_stopped(service, create_app(service, with_page=address.ui, routers=[router]), sock, address)
