"""`POST /v1/completions`: plain text, continued."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response

from rorqual.serve import logprobs
from rorqual.serve.answer import Shape, answer
from rorqual.serve.reading import Piece, Reader, Stops
from rorqual.serve.replies import Choice
from rorqual.serve.schemas import TextRequest
from rorqual.serve.service import Service
from rorqual.serve.wire import Ask

router = APIRouter()


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    """Texts, continued. Ids are fed as they are; text begins as the model's texts begin."""
    return await answer(request, TextRequest, TextShape)


class TextShape(Shape[TextRequest]):
    """Text, without parts. The answers to one prompt stand together, in the order of the prompts."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def __init__(self, service: Service, wanted: TextRequest) -> None:
        super().__init__(service, wanted)
        self._begun: set[int] = set()
        self._told: dict[int, int] = {}  # characters of the tokens whose log-probabilities were told

    def texts(self) -> Iterator[tuple[str, list[str]]]:
        return (("prompt", [prompt]) for prompt in self.wanted.prompts if isinstance(prompt, str))

    def forget(self) -> None:
        if not self.wanted.echo:
            self.wanted = self.wanted.model_copy(update={"prompt": ""})

    def size(self, index: int, piece: Piece, choice: Choice) -> int:
        echoed = self.wanted.echo and index not in self._begun
        prompt = self.wanted.prompts[index // (self.wanted.n or 1)] if echoed else ""
        return super().size(index, piece, choice) + len(prompt)

    def asks(self) -> list[Ask]:
        service, wanted = self.service, self.wanted
        return [service.ask(wanted, service.prompt_of_text(prompt), "prompt") for prompt in wanted.prompts]

    def new(self) -> Choice:
        ends = frozenset(self.wanted.stop_token_ids or ())
        tell = self.wanted.top is not None
        return Choice(Reader.of_text(self.service.chat), Stops(self.wanted.stops), ends, tell=tell)

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        return self._part(index, self._echo(index) + choice.content, choice)

    def parts(self, index: int, piece: Piece, choice: Choice) -> Iterator[dict[str, Any]]:
        before = "" if index in self._begun else self._echo(index)
        self._begun.add(index)
        yield self._part(index, before + piece.content, choice)

    def _part(self, index: int, text: str, choice: Choice) -> dict[str, Any]:
        told = None
        if self.wanted.top is not None:
            told = logprobs.of_text(self.service.chat.tokenizer, choice.take(), self._told.get(index, 0))
            self._told[index] = self._told.get(index, 0) + sum(map(len, told["tokens"]))
        return {"index": index, "text": text, "logprobs": told, "finish_reason": choice.reason}

    def _echo(self, index: int) -> str:
        if not self.wanted.echo:
            return ""
        prompt = self.wanted.prompts[index // (self.wanted.n or 1)]
        return prompt if isinstance(prompt, str) else self.service.chat.tokenizer.decode(prompt, specials=True)
