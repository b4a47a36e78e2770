"""The request path that all generating routes share: parse the body, submit prompts, return one JSON object or an event stream.

Each route supplies a `ResponseBuilder`, which builds the route's response objects. Work whose duration grows with the length
of the request or the reply runs in the tenant's thread, because all streams share the event loop.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

from fastapi import Request, Response

from rorqual.data.chat.stream import ReplyDelta, ToolDelta
from rorqual.serve.bodies import read_body
from rorqual.serve.http_responses import (
    COMMENT,
    DONE,
    EventStream,
    SlicedJsonResponse,
    compact_json,
    ignored_fields_header,
    run_unless_disconnected,
    sse_event,
)
from rorqual.serve.limits import MAX_VALUES, too_large
from rorqual.serve.replies import Choice, Reply
from rorqual.serve.schemas import GenerationRequest, parse_request
from rorqual.serve.service import CascadeTeacher, ModelService
from rorqual.serve.wire import EngineRequest, PackedRequest, pack

MANY = 64
"""If more than `MANY` log-probabilities of a choice wait to be sent, the next stream event of the choice counts as long."""
W = TypeVar("W", bound=GenerationRequest)


class ResponseBuilder(ABC, Generic[W]):
    """Builder of a route's response objects for one request.

    `prefix`: start of the response id. `whole`: the `object` type of a complete response. `part`: the `object` type of a stream
    chunk. `prompt_field`: the request parameter of the prompt. `cascades`: whether another model, such as the teacher of a cascade, may
    answer requests of this route.
    """

    prefix: ClassVar[str]
    whole: ClassVar[str]
    part: ClassVar[str]
    prompt_field: ClassVar[str]
    cascades: ClassVar[bool] = False

    def __init__(self, service: ModelService, wanted: W) -> None:
        self.service, self.wanted = service, wanted

    @abstractmethod
    def texts_by_parameter(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (request parameter, texts) pairs for the check of prompt lengths. The texts of one pair must together fit in
        the model's context."""

    def ignored_fields(self) -> list[str]:
        """Return the names of request fields that have no effect with this model."""
        return []

    def unlike_prompt_header(self) -> dict[str, str]:
        """Return the response headers that describe the prompt, such as `x-rorqual-unlike`."""
        return {}

    @abstractmethod
    def engine_requests(self) -> list[EngineRequest]:
        """Return one engine request for each prompt of the client's request. Raises ApiError if the client's request is
        invalid."""

    @abstractmethod
    def free_prompt_data(self) -> None:
        """Free the data that was only needed to build the prompt, because generation may take long."""

    @abstractmethod
    def new_choice(self) -> Choice:
        """Return an empty choice that collects generated tokens."""

    @abstractmethod
    def complete_choice_json(self, index: int, choice: Choice) -> dict[str, Any]:
        """Return the JSON object of a complete choice."""

    def extra_response_fields(self, choices: list[Choice]) -> dict[str, Any]:
        """Return additional top-level fields of a complete response."""
        return {}

    @abstractmethod
    def streamed_choices(self, index: int, piece: ReplyDelta, choice: Choice) -> Iterator[dict[str, Any]]:
        """Yield the `choices` entries to stream for one piece of text. The entry of the last piece has the choice's finish
        reason."""

    def may_have_large_events(self, choice: Choice) -> bool:
        """Return whether the next stream events of a choice may be long. Long events are serialized in the tenant's thread
        instead of the event loop."""
        return len(choice.pending_logprobs) > MANY

    def common_response_fields(self, kind: str) -> dict[str, Any]:
        """Return the response fields other than `choices`: id, object, created and model."""
        return {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": self.service.name,
        }


@dataclass(frozen=True)
class PreparedRequest(Generic[W]):
    """A parsed request, ready for the engine.

    `bound`: the request parameter that constrains the reply with a grammar, if any. `headers`: headers of the response.
    """

    shape: ResponseBuilder[W]
    asks: list[PackedRequest]
    bound: str | None
    headers: dict[str, str]


def prepare(
    service: ModelService, schema: type[W], kind: type[ResponseBuilder[W]], body: bytes, tenant: str
) -> PreparedRequest[W]:
    """Parse a request body, in the tenant's thread. Raises ApiError if the request is invalid."""
    wanted, ignored = parse_request(schema, body)
    service = service.for_model(wanted.model, tenant)
    info = service.served_model_limits(wanted.model)
    shape = kind(service, wanted)
    for param, texts in shape.texts_by_parameter():
        service.check_text_length(texts, param, info)
    asks = shape.engine_requests()
    service.check_total_tokens(asks, "prompt")
    _check_logprobs(wanted, asks, shape.prompt_field, held=service.teacher is not None)
    headers = shape.unlike_prompt_header() | ignored_fields_header([*ignored, *shape.ignored_fields()])
    prepared = PreparedRequest(shape, [pack(ask) for ask in asks], wanted.constraining_field, headers)
    shape.free_prompt_data()
    return prepared


def _check_logprobs(wanted: GenerationRequest, asks: list[EngineRequest], param: str, *, held: bool) -> None:
    """Raise ApiError if a response would have too many log-probabilities: those of the prompts, each as often as the response
    has it, and those of the replies. A stream that is not held in memory may have any number of log-probabilities of replies.

    `param`: the request parameter of the prompts. `held`: whether even a streamed response is first held in memory, as in a
    cascade.
    """
    count = sum(len(ask.prompt) for ask in asks) * sum(1 + top for top in wanted.prompt_top_logprobs)
    if count > MAX_VALUES:
        remedy = "Request fewer log-probabilities, or shorten the prompt."
        raise too_large(param, count, "log-probabilities in one response", MAX_VALUES, remedy)
    if wanted.n_top_logprobs is None or wanted.is_prompt_only or (wanted.stream and not held):
        return
    count += sum(ask.params.n * ask.params.max_tokens for ask in asks) * (1 + wanted.n_top_logprobs)
    if count > MAX_VALUES:
        unit = "log-probabilities in one response (the prompt's, and n * max_tokens * (1 + top_logprobs))"
        raise too_large("logprobs", count, unit, MAX_VALUES, "Lower max_tokens, or set stream: true.")


async def answer_request(request: Request, schema: type[W], kind: type[ResponseBuilder[W]]) -> Response:
    """Parse a request, generate the reply, and return the response. All generating routes use this function."""
    tenant: str = request.state.tenant
    service: ModelService = request.app.state.service
    teacher = service.teacher if kind.cascades else None
    services = [service] if teacher is None else [service, teacher.service]
    with ExitStack() as places:
        for one in services:
            places.enter_context(one.bridge.reserve_queue_place(tenant))
        async with read_body(request, service.max_body, service.bodies, tenant) as parts:
            work = partial(_prepare_for_services, services, schema, kind, parts, tenant)
            prepared = await run_unless_disconnected(request.receive, service.run_in_thread(tenant, work))
        if callable(prepared):
            places.close()
            return await prepared(request)
        for part in prepared:
            await part.shape.service.prepare_engine()
    headers = prepared[0].headers
    source = _GeneratedResponse(prepared[0], tenant)
    if teacher is not None:
        source = _CascadeResponse(prepared[0], prepared[1], tenant, teacher)
    if source.shape.wanted.stream:
        return EventStream(source.events(), headers)
    return SlicedJsonResponse(await run_unless_disconnected(request.receive, source.complete_json()), headers=headers)


def _prepare_for_services(
    services: Sequence[ModelService], schema: type[W], kind: type[ResponseBuilder[W]], parts: list[bytes], tenant: str
) -> list[PreparedRequest[W]] | Callable[[Request], Awaitable[Response]]:
    """Prepare the request for each model's service, because each model has its own chat format. If the request's model has no
    engine, return what answers it."""
    body = b"".join(parts)
    parts.clear()
    if kind.cascades and (respond := services[0].other_responder(body, tenant)) is not None:
        return respond
    return [prepare(service, schema, kind, body, tenant) for service in services]


class _GeneratedResponse(Generic[W]):
    """The response to one request, as one JSON object or as an event stream. `_cascade`: the field `cascade` of the
    response's `usage`, or None without a cascade."""

    def __init__(self, prepared: PreparedRequest[W], tenant: str) -> None:
        self.prepared, self.tenant = prepared, tenant
        self.shape = prepared.shape
        self._reply: Reply | None = None
        self._cascade: dict[str, Any] | None = None

    async def complete_json(self) -> bytes:
        """Return the complete response as JSON."""
        await self._run_job()
        return await self.shape.service.run_in_thread(self.tenant, self._body_json)

    async def _run_job(self) -> None:
        with self.shape.service.bridge.submitted_job(self.prepared.asks, self.tenant, self.prepared.bound) as job:
            self._reply = self._new_reply(job)
            await self._reply.run_to_end()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the response as server-sent events."""
        wanted, service = self.shape.wanted, self.shape.service
        envelope = self.shape.common_response_fields(self.shape.part)
        with_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
        async with aclosing(self._chunks(envelope, {"usage": None} if with_usage else {})) as chunks:
            async for data in chunks:
                yield data
        if with_usage:
            usage = await service.run_in_thread(self.tenant, self._usage)
            yield sse_event({**envelope, "choices": [], "usage": usage})
        yield DONE

    async def _chunks(self, envelope: dict[str, Any], usage_field: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """Yield events with the new text, and a comment after each `keep_alive` seconds without new text."""
        shape, service = self.shape, self.shape.service

        def events(index: int, piece: ReplyDelta, choice: Choice) -> list[bytes]:
            return [
                sse_event({**envelope, "choices": [part], **usage_field})
                for part in shape.streamed_choices(index, piece, choice)
            ]

        with service.bridge.submitted_job(self.prepared.asks, self.tenant, self.prepared.bound, streamed=True) as job:
            reply = self._reply = self._new_reply(job)
            async with aclosing(reply.stream_pieces(service.keep_alive)) as pieces:
                async for step in pieces:
                    if step is None:
                        yield COMMENT
                        continue
                    index, piece = step
                    job.sent = True
                    work = partial(events, index, piece, reply.choices[index])
                    long = shape.may_have_large_events(reply.choices[index])
                    for data in await service.run_in_thread(self.tenant, work) if long else work():
                        yield data

    def _new_reply(self, job: Any) -> Reply:
        service = self.shape.service
        run_in_thread = partial(service.run_in_thread, job.tenant)
        return Reply(job, service.chat, self.shape.new_choice, service.metrics, run_in_thread=run_in_thread)

    def _usage(self) -> dict[str, Any]:
        assert self._reply is not None
        return self._reply.usage() | ({} if self._cascade is None else {"cascade": self._cascade})

    def _body_json(self) -> bytes:
        assert self._reply is not None
        choices = [self.shape.complete_choice_json(index, choice) for index, choice in enumerate(self._reply.choices)]
        envelope, more = (
            self.shape.common_response_fields(self.shape.whole),
            self.shape.extra_response_fields(self._reply.choices),
        )
        return compact_json({**envelope, "choices": choices, "usage": self._usage(), **more})


class _CascadeResponse(_GeneratedResponse[W]):
    """The response of a cascade. The student's reply is held back until the reply is complete, because the teacher may
    replace the student's reply.

    While the student generates, a place in the teacher's queue is reserved, so that a full queue cannot prevent the teacher from answering.
    """

    def __init__(
        self, student: PreparedRequest[W], teacher: PreparedRequest[W], tenant: str, rule: CascadeTeacher
    ) -> None:
        super().__init__(student, tenant)
        self._rule, self._teacher = rule, teacher

    async def _run_job(self) -> None:
        with self._rule.service.bridge.reserve_queue_place(self.tenant):
            await super()._run_job()
            if self._student_is_confident():
                return
            self._switch_to_teacher()
        await super()._run_job()

    async def _chunks(self, envelope: dict[str, Any], usage_field: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        with self._rule.service.bridge.reserve_queue_place(self.tenant):
            student = asyncio.ensure_future(super()._run_job())
            try:
                while not student.done():
                    await asyncio.wait((student,), timeout=self.shape.service.keep_alive)
                    if not student.done():
                        yield COMMENT
                student.result()
            finally:
                student.cancel()
                await asyncio.gather(student, return_exceptions=True)
            if sure := self._student_is_confident():
                for data in await self.shape.service.run_in_thread(
                    self.tenant, partial(self._complete_reply_events, envelope, usage_field)
                ):
                    yield data
            else:
                self._switch_to_teacher()
        if not sure:
            async with aclosing(super()._chunks(envelope, usage_field)) as chunks:
                async for data in chunks:
                    yield data

    def _complete_reply_events(self, envelope: dict[str, Any], usage_field: dict[str, Any]) -> list[bytes]:
        """Return the events of the student's complete reply."""
        assert self._reply is not None
        choice = self._reply.choices[0]
        calls = (ToolDelta(n, call.id, call.name, call.arguments) for n, call in enumerate(choice.calls))
        piece = ReplyDelta(choice.reasoning, choice.content, tuple(calls))
        return [
            sse_event({**envelope, "choices": [part], **usage_field})
            for part in self.shape.streamed_choices(0, piece, choice)
        ]

    def _student_is_confident(self) -> bool:
        """Return whether the student's confidence in its reply is high enough to send the reply. A truncated reply of the
        student is never sent.

        Store the answering model and the student's confidence in `_cascade`.
        """
        assert self._reply is not None
        choice, rule = self._reply.choices[0], self._rule
        confidence = 0.0 if choice.reason == "length" else rule.confidence(choice.logprob, choice.n_sampled)
        sure = confidence >= rule.sure
        self._cascade = {"answered_by": rule.student if sure else rule.name, "confidence": confidence}
        if not sure:
            self._cascade["student_usage"] = self._reply.usage()
        return sure

    def _switch_to_teacher(self) -> None:
        self.prepared, self.shape = self._teacher, self._teacher.shape
