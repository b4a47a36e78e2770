"""`POST /v1/chat/completions`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response

from rorqual.serve import logprobs
from rorqual.serve.answer import Shape, answer
from rorqual.serve.exchange import body_of
from rorqual.serve.reading import Piece, Reader
from rorqual.serve.replies import Choice
from rorqual.serve.schemas import ChatRequest, read
from rorqual.serve.service import Service
from rorqual.serve.wire import Ask

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """A conversation, continued."""
    service: Service = request.app.state.service
    wanted, ignored = read(ChatRequest, await body_of(request, service.max_body))
    return await answer(request, ChatShape(service, wanted), wanted, ignored)


class ChatShape(Shape):
    """Messages, with reasoning apart."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, service: Service, wanted: ChatRequest) -> None:
        super().__init__(service)
        self.wanted = wanted
        self._begun: set[int] = set()

    def asks(self) -> list[Ask]:
        return [self.service.ask(self.wanted, self.service.prompt_of(self.wanted), "messages")]

    def reader(self) -> Reader:
        return Reader.of_chat(self.service.chat, self.wanted.thinking)

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.content, "refusal": None}
        if choice.reader.thought:
            message["reasoning_content"] = choice.reasoning
        told = self._logprobs(choice)
        return {"index": index, "message": message, "logprobs": told, "finish_reason": choice.reason}

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


def _delta(piece: Piece) -> dict[str, str]:
    fields = {"reasoning_content": piece.reasoning, "content": piece.content}
    return {name: text for name, text in fields.items() if text}


def _part(index: int, delta: dict[str, str], told: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": told, "finish_reason": reason}
