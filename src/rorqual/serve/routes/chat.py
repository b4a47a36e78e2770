"""`POST /v1/chat/completions`"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response

from rorqual.serve import logprobs
from rorqual.serve.answer import Shape, answer
from rorqual.serve.exchange import body_of
from rorqual.serve.reading import Piece, Reader, Stops
from rorqual.serve.replies import Choice
from rorqual.serve.schemas import ChatRequest, read
from rorqual.serve.service import Service
from rorqual.serve.wire import Ask

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """A conversation, continued."""
    service: Service = request.app.state.service
    body = await body_of(request, service.max_body)
    wanted, ignored = read(ChatRequest, body)
    if not service.chat.thinks:
        ignored = [*ignored, *wanted.modes()]
    return await answer(request, ChatShape(service, wanted), wanted, ignored, len(body))


class ChatShape(Shape):
    """Messages, with reasoning apart."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"
    param = "messages"

    def __init__(self, service: Service, wanted: ChatRequest) -> None:
        super().__init__(service)
        self.wanted = wanted
        self._begun: set[int] = set()
        self._prompt: list[int] = []
        # A model that never learned to think would go on from an open `<think>` with its answer, and never close it.
        self._thinking = wanted.thinking if service.chat.thinks else "auto"
        self._messages = [turn.message() for turn in wanted.messages]
        self._tools = wanted.offered()

    def texts(self) -> list[list[str]]:
        # Not the reasoning: some formats leave it out of a prompt.
        return [[message.content for message in self._messages]]

    def asks(self) -> list[Ask]:
        prompt = self._prompt = self.service.prompt_of(self._messages, self._thinking, self._tools)
        return [self.service.ask(self.wanted, prompt, "messages", tools=bool(self._tools))]

    def new(self) -> Choice:
        chat, wanted = self.service.chat, self.wanted
        mode = chat.mode(self._messages, self._thinking)
        reader = Reader.of_chat(chat, mode, self._tools, f"call_{secrets.token_hex(8)}_")
        ends = frozenset(wanted.stop_token_ids or ())
        least = wanted.min_tokens or 0
        return Choice(reader, Stops(wanted.stops), ends, one_call=wanted.parallel_tool_calls is False, least=least)

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.content, "refusal": None}
        if choice.reader.thought:
            message["reasoning_content"] = choice.reasoning
        if choice.calls:
            message["tool_calls"] = [_call(call.id, call.name, call.arguments) for call in choice.calls]
            message["content"] = choice.content or None
        told = self._logprobs(choice)
        return {"index": index, "message": message, "logprobs": told, "finish_reason": choice.reason}

    def more(self, choices: list[Choice]) -> dict[str, Any]:
        top = self.wanted.prompt_logprobs
        if top is None:
            return {}
        tokenizer = self.service.chat.tokenizer
        return {"prompt_logprobs": logprobs.of_prompt(tokenizer, self._prompt, choices[0].scores, top)}

    def parts(self, index: int, piece: Piece, choice: Choice) -> Iterator[dict[str, Any]]:
        delta = ({} if index in self._begun else {"role": "assistant"}) | _delta(piece)
        self._begun.add(index)
        told = self._logprobs(choice)
        if delta:
            yield _part(index, delta, told, None)
            told = None
        if choice.reason is not None:
            yield _part(index, {}, told, choice.reason)

    def _logprobs(self, choice: Choice) -> dict[str, Any] | None:
        """Of the tokens that came since the last call."""
        if self.wanted.top is None:
            return None
        fresh = choice.take()
        return logprobs.of_chat(self.service.chat.tokenizer, fresh) if fresh else None


def _call(id_: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def _delta(piece: Piece) -> dict[str, Any]:
    calls = [
        {"index": one.index, "function": {"arguments": one.arguments}}
        if one.id is None
        else {"index": one.index, **_call(one.id, one.name or "", one.arguments)}
        for one in piece.tools
    ]
    fields = {"reasoning_content": piece.reasoning, "content": piece.content, "tool_calls": calls}
    return {name: value for name, value in fields.items() if value}


def _part(index: int, delta: dict[str, Any], told: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": told, "finish_reason": reason}
