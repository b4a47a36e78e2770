"""The route `POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from rorqual.data.chat.stops import StopStringMatcher
from rorqual.data.chat.stream import ReplyDelta
from rorqual.serve import logprobs
from rorqual.serve.answer import ResponseBuilder, answer_request
from rorqual.serve.replies import Choice
from rorqual.serve.schemas import TextRequest
from rorqual.serve.service import ModelService
from rorqual.serve.wire import EngineRequest

router = APIRouter()


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    """Continue one or more prompts. A text prompt starts with a BOS token if the model has a BOS token; a prompt of token ids
    is used unchanged."""
    return await answer_request(request, TextRequest, TextResponseBuilder)


class TextResponseBuilder(ResponseBuilder[TextRequest]):
    """Builder of text completion objects. Choices are ordered by prompt."""

    prefix, whole, part, prompt_field = "cmpl", "text_completion", "text_completion", "prompt"

    def __init__(self, service: ModelService, wanted: TextRequest) -> None:
        super().__init__(service, wanted)
        self._started: set[int] = set()
        self._prompts: list[Sequence[int]] = []
        self._offsets: dict[int, logprobs.TextOffsets] = {}  # choice index -> offsets of the reply's tokens

    def texts_by_parameter(self) -> Iterator[tuple[str, list[str]]]:
        return (("prompt", [prompt]) for prompt in self.wanted.prompts if isinstance(prompt, str))

    def free_prompt_data(self) -> None:
        if not self.wanted.echo:
            self.wanted = self.wanted.model_copy(update={"prompt": ""})

    def may_have_large_events(self, choice: Choice) -> bool:
        return bool(self.wanted.echo) or super().may_have_large_events(choice)

    def engine_requests(self) -> list[EngineRequest]:
        service, wanted = self.service, self.wanted
        self._prompts = [service.text_prompt_ids(prompt) for prompt in wanted.prompts]
        return [service.build_engine_request(wanted, prompt, "prompt", plain=True) for prompt in self._prompts]

    def new_choice(self) -> Choice:
        wanted, params = self.wanted, self.wanted.params()
        reader, ends = self.service.chat.reader("auto", plain=True), frozenset(params.stop_token_ids)
        tell = wanted.n_top_logprobs is not None
        return Choice(
            reader, StopStringMatcher(params.stop), ends, least=params.min_tokens, mute=wanted.is_prompt_only, tell=tell
        )

    def complete_choice_json(self, index: int, choice: Choice) -> dict[str, Any]:
        choice_ = self._text_choice_json(index, self._echoed_prompt(index) + choice.content, choice)
        if (top := self.wanted.params().prompt_logprobs) is not None:
            prompt = self._prompts[self._prompt_index(index)]
            choice_["prompt_logprobs"] = logprobs.vllm_prompt_logprobs(
                self.service.chat.tokenizer, prompt, choice.scores, top
            )
        return choice_

    def streamed_choices(self, index: int, piece: ReplyDelta, choice: Choice) -> Iterator[dict[str, Any]]:
        before = "" if index in self._started else self._echoed_prompt(index)
        self._started.add(index)
        yield self._text_choice_json(index, before + piece.content, choice)

    def _text_choice_json(self, index: int, text: str, choice: Choice) -> dict[str, Any]:
        logprobs_ = None
        if self.wanted.n_top_logprobs is not None:
            tokenizer, prompt_logprobs = self.service.chat.tokenizer, {}
            if index not in self._offsets:
                self._offsets[index] = logprobs.TextOffsets(tokenizer, len(self._echoed_prompt(index)))
                prompt_logprobs = self._echo_logprobs(index, choice) if self.wanted.echo else {}
            logprobs_ = logprobs.text_logprobs(tokenizer, choice.take_pending_logprobs(), self._offsets[index])
            logprobs_ = {name: [*prompt_logprobs.get(name, ()), *values] for name, values in logprobs_.items()}
        return {"index": index, "text": text, "logprobs": logprobs_, "finish_reason": choice.reason}

    def _echo_logprobs(self, index: int, choice: Choice) -> dict[str, Any]:
        """Return the `logprobs` of the echoed prompt, which come before the `logprobs` of the reply."""
        number, chat = self._prompt_index(index), self.service.chat
        added = int(chat.bos is not None and isinstance(self.wanted.prompts[number], str))
        return logprobs.echo_logprobs(
            chat.tokenizer, self._prompts[number], choice.scores, self.wanted.n_top_logprobs or 0, added
        )

    def _prompt_index(self, index: int) -> int:
        """Return the index of the prompt that a choice continues."""
        return index // self.wanted.params().n

    def _echoed_prompt(self, index: int) -> str:
        if not self.wanted.echo:
            return ""
        prompt = self.wanted.prompts[self._prompt_index(index)]
        return prompt if isinstance(prompt, str) else self.service.chat.tokenizer.decode(prompt, specials=True)
