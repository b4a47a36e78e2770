"""`POST /v1/completions`"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from rorqual.data.chat.stops import Stops
from rorqual.data.chat.stream import Piece
from rorqual.serve import logprobs
from rorqual.serve.answer import ENTRY, Shape, answer
from rorqual.serve.replies import Choice
from rorqual.serve.schemas import TextRequest
from rorqual.serve.service import Service
from rorqual.serve.wire import Ask

router = APIRouter()


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    """Continue texts. Token ids are used unchanged; a text prompt starts with the BOS token, if the model has one."""
    return await answer(request, TextRequest, TextShape)


class TextShape(Shape[TextRequest]):
    """Builds text completion objects. Replies are ordered by prompt."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def __init__(self, service: Service, wanted: TextRequest) -> None:
        super().__init__(service, wanted)
        self._begun: set[int] = set()
        self._prompts: list[Sequence[int]] = []
        self._told: dict[int, int] = {}  # by choice: characters of the tokens whose log-probabilities were sent

    def texts(self) -> Iterator[tuple[str, list[str]]]:
        return (("prompt", [prompt]) for prompt in self.wanted.prompts if isinstance(prompt, str))

    def forget(self) -> None:
        if not self.wanted.echo:
            self.wanted = self.wanted.model_copy(update={"prompt": ""})

    def size(self, index: int, piece: Piece, choice: Choice) -> int:
        size = super().size(index, piece, choice)
        if not self.wanted.echo or index in self._begun:
            return size
        return (
            size
            + len(self.wanted.prompts[self._number(index)])
            + ENTRY * len(choice.scores) * (1 + (self.wanted.top or 0))
        )

    def asks(self) -> list[Ask]:
        service, wanted = self.service, self.wanted
        self._prompts = [service.prompt_of_text(prompt) for prompt in wanted.prompts]
        return [service.ask(wanted, prompt, "prompt") for prompt in self._prompts]

    def new(self) -> Choice:
        wanted, params = self.wanted, self.wanted.params()
        reader, ends, tell = (
            self.service.chat.reader("auto", plain=True),
            frozenset(params.stop_token_ids),
            wanted.top is not None,
        )
        return Choice(reader, Stops(params.stop), ends, least=params.min_tokens, mute=wanted.mute, tell=tell)

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        found = self._part(index, self._echo(index) + choice.content, choice)
        if (top := self.wanted.params().prompt_logprobs) is not None:
            prompt = self._prompts[self._number(index)]
            found["prompt_logprobs"] = logprobs.of_prompt(self.service.chat.tokenizer, prompt, choice.scores, top)
        return found

    def parts(self, index: int, piece: Piece, choice: Choice) -> Iterator[dict[str, Any]]:
        before = "" if index in self._begun else self._echo(index)
        self._begun.add(index)
        yield self._part(index, before + piece.content, choice)

    def _part(self, index: int, text: str, choice: Choice) -> dict[str, Any]:
        told = None
        if self.wanted.top is not None:
            echoed = self._echoed(index, choice) if self.wanted.echo and index not in self._told else {}
            told = logprobs.of_text(self.service.chat.tokenizer, choice.take(), self._told.get(index, 0))
            self._told[index] = self._told.get(index, 0) + sum(map(len, told["tokens"]))
            told = {name: [*echoed.get(name, ()), *values] for name, values in told.items()}
        return {"index": index, "text": text, "logprobs": told, "finish_reason": choice.reason}

    def _echoed(self, index: int, choice: Choice) -> dict[str, Any]:
        """Return `logprobs` of the echoed prompt, which precede those of the reply."""
        number, chat = self._number(index), self.service.chat
        added = int(chat.bos is not None and isinstance(self.wanted.prompts[number], str))
        found = logprobs.of_echo(chat.tokenizer, self._prompts[number], choice.scores, self.wanted.top or 0, added)
        self._told[index] = sum(map(len, found["tokens"][added:]))
        return found

    def _number(self, index: int) -> int:
        """Return the number of the prompt that a choice continues."""
        return index // self.wanted.params().n

    def _echo(self, index: int) -> str:
        if not self.wanted.echo:
            return ""
        prompt = self.wanted.prompts[self._number(index)]
        return prompt if isinstance(prompt, str) else self.service.chat.tokenizer.decode(prompt, specials=True)
