"""`POST /rollout/generate`, `GET` and `POST /rollout/weights`: the server as a trainer's rollout engine. They are there with `rollout_dir=`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from rorqual.data.chat.stops import Stops
from rorqual.data.chat.stream import Piece
from rorqual.serve.answer import answer
from rorqual.serve.errors import ApiError, refuse
from rorqual.serve.replies import Choice
from rorqual.serve.routes.completions import TextShape
from rorqual.serve.schemas import TextRequest
from rorqual.serve.service import Service
from rorqual.serve.uploads import WeightUploads
from rorqual.serve.wire import TENANT

router = APIRouter()


class RolloutRequest(TextRequest):
    """`POST /rollout/generate`: a prompt as ids, and how to sample. Temperatures reach as far as training's."""

    temperature: Annotated[float, Field(ge=0, le=1e3)] | None = None

    def check(self) -> None:
        super().check()
        if self.stream or self.echo or self.mute or self.scored is not None:
            raise refuse(
                "A rollout has no `stream`, `echo` or `prompt_logprobs`, and `max_tokens` of 1 or more. Leave these out."
            )
        if len(self.prompts) != 1 or isinstance(self.prompts[0], str):
            raise refuse("`prompt` must be one list of token ids.", "prompt")


class RolloutShape(TextShape):
    """Token ids with their log-probabilities, the experts that served them, and the version of the weights that drew them."""

    prefix, whole, part = "rollout", "rollout", "rollout"

    def new(self) -> Choice:
        return Choice(self.service.chat.reader("auto", plain=True), Stops(()), tell=True)

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        drawn, recorded = choice.take(), choice.recorded
        assert recorded is not None  # it comes before the last token
        return {
            "index": index,
            "token_ids": [one.token for one in drawn],
            "logprobs": [one.logprob for one in drawn],
            "finish_reason": choice.reason,
            "policy_version": recorded.policy_version,
            "experts": recorded.experts,
            "kept": recorded.kept,
        }

    def parts(self, index: int, piece: Piece, choice: Choice) -> Iterator[dict[str, Any]]:
        raise NotImplementedError


def _uploads(request: Request) -> WeightUploads:
    found: WeightUploads | None = request.app.state.service.uploads
    if found is None or request.state.tenant != TENANT:
        raise ApiError(401, "the key for rollouts is needed: Authorization: Bearer KEY", code="invalid_api_key")
    return found


@router.post("/rollout/generate")
async def generate(request: Request) -> Response:
    """Samples of one prompt."""
    _uploads(request)
    return await answer(request, RolloutRequest, RolloutShape)


@router.get("/rollout/weights")
async def weights(request: Request) -> Response:
    """Which weights the engine samples with, and what a trainer must share with it."""
    uploads, service = _uploads(request), request.app.state.service
    return JSONResponse(_state(service, uploads))


@router.post("/rollout/weights")
async def update(request: Request) -> Response:
    """Other weights: a safetensors file with every tensor of the model. Requests that run end with the weights that they began with."""
    uploads, service = _uploads(request), request.app.state.service
    await uploads.take(request, service.bridge)
    return JSONResponse(_state(service, uploads))


def _state(service: Service, uploads: WeightUploads) -> dict[str, Any]:
    return {
        "model": service.name,
        "version": uploads.version,
        "sha256": uploads.digest.hex(),
        "tokenizer": service.chat.tokenizer.fingerprint,
        "chat": service.chat.name,
        "slots": service.bridge.placed.slots,
    }
