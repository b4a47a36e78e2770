"""The route `POST /v1/chat/completions`."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response

from rorqual.core.example_prompts import is_unlike_prompts
from rorqual.core.records import Tool
from rorqual.data.chat.stops import StopStringMatcher
from rorqual.data.chat.stream import ReplyDelta
from rorqual.data.chat.tools import template_json
from rorqual.serve import logprobs
from rorqual.serve.answer import ResponseBuilder, answer_request
from rorqual.serve.errors import bad_request
from rorqual.serve.replies import Choice
from rorqual.serve.schemas import ChatRequest
from rorqual.serve.service import ModelService
from rorqual.serve.wire import EngineRequest

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """Continue a conversation."""
    return await answer_request(request, ChatRequest, ChatResponseBuilder)


class ChatResponseBuilder(ResponseBuilder[ChatRequest]):
    """Builder of chat completion objects. Reasoning is in `reasoning_content`."""

    prefix, whole, part, prompt_field = "chatcmpl", "chat.completion", "chat.completion.chunk", "messages"
    cascades = True

    def __init__(self, service: ModelService, wanted: ChatRequest) -> None:
        super().__init__(service, wanted)
        if service.teacher is not None and wanted.params().n > 1:
            raise bad_request("`n` is above 1, but a cascade gives one reply. Leave `n` out.", "n")
        self._started: set[int] = set()
        self._prompt: list[int] = []
        # A model that was not trained to reason would write its answer after `<think>` and never write `</think>`.
        self._thinking = (wanted.thinking or service.task.thinking or "auto") if service.chat.thinks else "auto"
        self._messages = [turn.to_message() for turn in wanted.messages]
        service.check_content_parts(self._messages)
        self._tools = wanted.offered_tools()
        self._mode = service.chat.effective_thinking(self._messages, self._thinking)

    def ignored_fields(self) -> list[str]:
        paths = () if self.service.chat.thinks else self.wanted.reasoning_modes()
        return [*dict.fromkeys(path.partition(".")[0] for path in paths)]

    def unlike_prompt_header(self) -> dict[str, str]:
        [first, *more] = self._messages
        return {"x-rorqual-unlike": "1"} if not more and is_unlike_prompts(first.label, self.service.prompts) else {}

    def texts_by_parameter(self) -> Iterator[tuple[str, list[str]]]:
        calls = (call for message in self._messages for call in message.tool_calls)
        tools = self._tools if self.service.chat.takes_tools else ()
        tool_texts = (text for tool in tools for text in (tool.name, tool.description, template_json(tool.parameters)))
        labels = [message.label for message in self._messages]
        yield "messages", [*labels, *(call.name + call.arguments for call in calls), *tool_texts]
        # Reasoning is checked separately, because some chat formats omit the reasoning of earlier turns from the prompt.
        for number, message in enumerate(self._messages):
            if message.reasoning:
                yield f"messages[{number}].reasoning_content", [message.reasoning]

    def free_prompt_data(self) -> None:
        self._messages = []
        self._tools = [Tool(tool.name) for tool in self._tools]  # parsing tool calls needs only the tools' names
        cleared = {"tools", "response_format", "guided_json", "guided_choice", "logit_bias"}
        self.wanted = self.wanted.model_copy(update={"messages": [], **dict.fromkeys(cleared)})

    def engine_requests(self) -> list[EngineRequest]:
        answer = self.wanted.response_format.json_schema if self.wanted.response_format else None
        schema = None if answer is None else answer.schema_
        prompt = self._prompt = self.service.chat_prompt_ids(self._messages, self._thinking, self._tools, schema)
        wanted, service = self.wanted, self.service
        tools = bool(self._tools)
        return [
            service.build_engine_request(
                wanted, prompt, "messages", tools=tools, effort=wanted.thinking_budget_share, task=service.task
            )
        ]

    def new_choice(self) -> Choice:
        wanted = self.wanted
        reader = self.service.chat.reader(self._mode, self._tools, calls=f"call_{secrets.token_hex(8)}_")
        params, ends = wanted.params(), frozenset(wanted.params().stop_token_ids)
        one_call, tell = wanted.parallel_tool_calls is False, wanted.n_top_logprobs is not None
        return Choice(
            reader, StopStringMatcher(params.stop), ends, one_call=one_call, least=params.min_tokens, tell=tell
        )

    def complete_choice_json(self, index: int, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.content, "refusal": None}
        if choice.reader.has_reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.calls:
            message["tool_calls"] = [_tool_call_json(call.id, call.name, call.arguments) for call in choice.calls]
            message["content"] = choice.content or None
        logprobs_ = self._logprobs(choice)
        return {"index": index, "message": message, "logprobs": logprobs_, "finish_reason": choice.reason}

    def extra_response_fields(self, choices: list[Choice]) -> dict[str, Any]:
        top = self.wanted.params().prompt_logprobs
        if top is None:
            return {}
        tokenizer = self.service.chat.tokenizer
        return {"prompt_logprobs": logprobs.vllm_prompt_logprobs(tokenizer, self._prompt, choices[0].scores, top)}

    def streamed_choices(self, index: int, piece: ReplyDelta, choice: Choice) -> Iterator[dict[str, Any]]:
        delta = ({} if index in self._started else {"role": "assistant"}) | _delta(piece)
        self._started.add(index)
        logprobs_ = self._logprobs(choice)
        if delta:
            yield _chunk_choice_json(index, delta, logprobs_, None)
            logprobs_ = None
        if choice.reason is not None:
            yield _chunk_choice_json(index, {}, logprobs_, choice.reason)

    def _logprobs(self, choice: Choice) -> dict[str, Any] | None:
        """Return the `logprobs` of the tokens that were generated since the last call of this method. Return None if the
        request does not set `logprobs`, or if no new tokens were generated."""
        if self.wanted.n_top_logprobs is None:
            return None
        fresh = choice.take_pending_logprobs()
        return logprobs.chat_logprobs(self.service.chat.tokenizer, fresh) if fresh else None


def _tool_call_json(id_: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def _delta(piece: ReplyDelta) -> dict[str, Any]:
    calls = [
        {"index": call.index, "function": {"arguments": call.arguments}}
        if call.id is None
        else {"index": call.index, **_tool_call_json(call.id, call.name or "", call.arguments)}
        for call in piece.tools
    ]
    fields = {"reasoning_content": piece.reasoning, "content": piece.content, "tool_calls": calls}
    return {name: value for name, value in fields.items() if value}


def _chunk_choice_json(
    index: int, delta: dict[str, Any], logprobs_: dict[str, Any] | None, reason: str | None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs_, "finish_reason": reason}
