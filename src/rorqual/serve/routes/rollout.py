"""The routes for a trainer: `POST /rollout/generate`, `GET /rollout/weights` and `POST /rollout/weights`.

The option `rollout_dir=` enables the rollout routes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from rorqual.data.chat.stops import StopStringMatcher
from rorqual.data.chat.stream import ReplyDelta
from rorqual.serve.answer import answer_request
from rorqual.serve.errors import ApiError, bad_request
from rorqual.serve.replies import Choice
from rorqual.serve.routes.completions import TextResponseBuilder
from rorqual.serve.schemas import TextRequest
from rorqual.serve.service import ModelService
from rorqual.serve.uploads import WeightUploads
from rorqual.serve.wire import TENANT

router = APIRouter()


class RolloutRequest(TextRequest):
    """Body of `POST /rollout/generate`: one prompt as token ids, and sampling parameters.

    `POST /rollout/generate` accepts temperatures up to 1,000, the maximum in training; all other routes accept temperatures
    up to 2.
    """

    temperature: Annotated[float, Field(ge=0, le=1e3)] | None = None

    def check(self) -> None:
        super().check()
        if self.stream or self.echo or self.is_prompt_only or self.n_prompt_top_logprobs is not None:
            raise bad_request(
                "A rollout does not support `stream`, `echo`, `prompt_logprobs` or `max_tokens: 0`. Remove these fields."
            )
        if len(self.prompts) != 1 or isinstance(self.prompts[0], str):
            raise bad_request("`prompt` must be one list of token ids.", "prompt")


class RolloutResponseBuilder(TextResponseBuilder):
    """Builder of rollout objects: token ids, log-probabilities, routed experts, tokens that remained after top-p and
    top-k filtering, and the version of the weights."""

    prefix, whole, part = "rollout", "rollout", "rollout"

    def new_choice(self) -> Choice:
        return Choice(self.service.chat.reader("auto", plain=True), StopStringMatcher(()), tell=True)

    def complete_choice_json(self, index: int, choice: Choice) -> dict[str, Any]:
        tokens, recorded = choice.take_pending_logprobs(), choice.recorded
        assert recorded is not None  # the engine sends `recorded` before the last token
        return {
            "index": index,
            "token_ids": [token.token for token in tokens],
            "logprobs": [token.logprob for token in tokens],
            "finish_reason": choice.reason,
            "policy_version": recorded.policy_version,
            "experts": recorded.experts,
            "kept": recorded.kept,
        }

    def streamed_choices(self, index: int, piece: ReplyDelta, choice: Choice) -> Iterator[dict[str, Any]]:
        raise NotImplementedError


def _uploads(request: Request) -> WeightUploads:
    uploads: WeightUploads | None = request.app.state.service.uploads
    if uploads is None or request.state.tenant != TENANT:
        problem = "This route needs the rollout key. Send the header Authorization: Bearer KEY."
        raise ApiError(401, problem, code="invalid_api_key")
    return uploads


@router.post("/rollout/generate")
async def generate(request: Request) -> Response:
    """Generate rollouts of one prompt."""
    _uploads(request)
    return await answer_request(request, RolloutRequest, RolloutResponseBuilder)


@router.get("/rollout/weights")
async def describe_weights(request: Request) -> Response:
    """Return the server's tokenizer and chat format, and the version of the engine's weights.

    The trainer must use the tokenizer and the chat format of the server.
    """
    uploads, service = _uploads(request), request.app.state.service
    return JSONResponse(_weights_state(service, uploads))


@router.post("/rollout/weights")
async def replace_weights(request: Request) -> Response:
    """Replace the engine's weights. The request body is a safetensors file with every tensor of the model.

    Running requests finish with the old weights.
    """
    uploads, service = _uploads(request), request.app.state.service
    await uploads.load_from_request(request, service.bridge)
    return JSONResponse(_weights_state(service, uploads))


def _weights_state(service: ModelService, uploads: WeightUploads) -> dict[str, Any]:
    return {
        "model": service.name,
        "version": uploads.version,
        "sha256": uploads.digest.hex(),
        "tokenizer": service.chat.tokenizer.fingerprint,
        "chat": service.chat.name,
        "slots": service.bridge.arguments.engine["slots"],
    }
