"""A rollout engine for a remote server that runs `rorqual serve` with `rollout_dir=`. The trainer uploads weights and
receives token ids."""

from __future__ import annotations

import base64
import hashlib
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from rorqual.core.errors import ConfigError, DataError
from rorqual.core.sampling import PARAMS
from rorqual.data.chat import ChatFormat
from rorqual.engine.remote.engine import NoCompletion, RemoteClient, check_requests, usage_of
from rorqual.engine.request import Completion, Request, SamplingParams
from rorqual.engine.rollout_engine import Put, iterate_completions
from rorqual.engine.seeds import sample_seed
from rorqual.model import Decoder
from rorqual.model.adapter import merged_weights

UNSUPPORTED = ("stop", "grammar", "top_logprobs", "prompt_logprobs")
SERVER_REMEDY = "Give the address of a `rorqual serve` of this version."


class RemoteRolloutEngine(RemoteClient):
    """A rollout engine that samples with `POST {address}/rollout/generate` and uploads weights to `/rollout/weights`.

    docs/how-to/serve.md describes `/rollout/generate` and `/rollout/weights`. Each sample is a separate HTTP request. The
    number of HTTP requests in flight is at most the server's number of slots. Prompts and replies are sent as token ids, so
    that no text is tokenized again. Raises ConfigError if the server's tokenizer or chat format differs from the trainer's.
    """

    def __init__(self, address: str, chat: ChatFormat, *, api_key: str, **settings: Any) -> None:
        super().__init__(address.rstrip("/").removesuffix("/v1"), "/rollout/generate", api_key=api_key, **settings)
        self.chat = chat
        self.weights_url = self.url.removesuffix("generate") + "weights"
        state = self.request_json(self.weights_url)
        try:
            self.model, self.version, self.concurrency = state["model"], int(state["version"]), int(state["slots"])
            server_formats = (state["tokenizer"], state["chat"])
        except (KeyError, TypeError, ValueError):
            raise ConfigError(
                "the server's reply lacks the model, weight version, slots, tokenizer or chat format",
                where=self.weights_url,
                remedy=SERVER_REMEDY,
            ) from None
        if server_formats != (chat.tokenizer.fingerprint, chat.name):
            raise ConfigError(
                f"the server's tokenizer or chat format ({server_formats[1]}) differs from the trainer's ({chat.name})",
                where=self.weights_url,
                remedy="Start the server with the run that training starts from.",
            )

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield samples as they finish.

        Raises the first error of a request that persists after all retries. Closing the iterator cancels the requests that have
        not been sent yet.
        """
        places = [(number, sample) for number, request in enumerate(requests) for sample in range(request.params.n)]

        def collect_samples(put: Put, closed: threading.Event) -> None:
            def arrived(place: int, completion: Completion) -> None:
                if closed.is_set():
                    raise ConfigError("the caller stopped waiting for these samples", where=self.url)
                completion.request, completion.sample = places[place]
                put(completion)

            self.collect_completions([(requests[number], sample) for number, sample in places], arrived)

        return iterate_completions(collect_samples)

    def update(self, weights: Decoder, version: int) -> None:
        """Upload `weights`, with any adapter merged, and wait until the server samples with `weights`."""
        data = save({name: tensor.cpu().contiguous() for name, tensor in merged_weights(weights).items()})
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        headers = {"Content-Type": "application/octet-stream", "Content-Digest": f"sha-256=:{digest}:"}
        self.request_json(f"{self.weights_url}?version={version}", data, headers)
        self.version = version

    def _check_supported(self, wanted: Sequence[tuple[Request, int]]) -> None:
        default = SamplingParams()
        check_requests([request for request, _ in wanted])
        for request, _ in wanted:
            for name in UNSUPPORTED:
                if getattr(request.params, name) != getattr(default, name):
                    raise DataError(
                        f"'{name}' is not supported by remote rollouts", where=self.url, remedy="Remove this parameter."
                    )

    def _prompt_token_ids(self, request: Request) -> list[int]:
        given = request.prompt_ids
        return self.chat.prompt(request.messages, request.thinking) if given is None else list(given)

    def _request_body(self, request: Request, sample: int) -> dict[str, Any]:
        params = request.params
        # Send all parameters, because the server has its own defaults.
        sent_params = {name: param for name, param in PARAMS.items() if name not in (*UNSUPPORTED, "n", "seed")}
        return {name: param.type.to_json_value(getattr(params, name)) for name, param in sent_params.items()} | {
            "model": self.model,
            "prompt": self._prompt_token_ids(request),
            "seed": sample_seed(params.seed, sample),
            "logprobs": 0,
        }

    def _parse_completion(self, data: Any, request: Request) -> Completion:
        prompt = tuple(self._prompt_token_ids(request))
        try:
            choice = data["choices"][0]
            token_ids = [int(token) for token in choice["token_ids"]]
            logprobs = [float(logprob) for logprob in choice["logprobs"]]
            experts, kept = _array(choice["experts"]), _array(choice["kept"])
            reason, version = choice["finish_reason"], int(choice["policy_version"])
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise NoCompletion(
                f"the reply is not a rollout: {type(error).__name__} {error}", {}, SERVER_REMEDY
            ) from None
        n, length = len(token_ids), len(prompt) + len(token_ids) - 1
        valid = 0 < n == len(logprobs) and all(map(math.isfinite, logprobs)) and reason in ("stop", "length")
        if not valid or (experts is not None and len(experts) != length) or (kept is not None and len(kept) != n):
            what = (
                f"{n} tokens and {len(logprobs)} log-probabilities; "
                "some log-probabilities are not finite, or the record of experts or kept tokens has the wrong length"
            )
            raise NoCompletion(f"the reply is not a rollout: {what}", usage_of(data), SERVER_REMEDY)
        thinking = request.thinking if request.prompt_ids is None else self.chat.thinking_mode_of(prompt)
        message = self.chat.parse(token_ids, thinking)
        return Completion(
            prompt_ids=prompt,
            token_ids=token_ids,
            logprobs=logprobs,
            finish_reason=reason,
            text=message.text,
            reasoning=message.reasoning,
            experts=None if experts is None else torch.from_numpy(experts),
            kept=kept,
            usage=usage_of(data),
            model=self.model,
            policy_version=version,
        )

    def _remedy_for_status(self, code: int) -> str:
        known = {
            401: "Give the rollout key (RORQUAL_ROLLOUT_KEY), which the server printed at its first start with rollout_dir=FOLDER.",
            404: "Start the server with rollout_dir=FOLDER, and give its address.",
        }
        return known.get(code) or super()._remedy_for_status(code)


def _array(encoded: Mapping[str, Any] | None) -> np.ndarray[Any, Any] | None:
    if encoded is None:
        return None
    flat = np.frombuffer(base64.b64decode(encoded["data"], validate=True), np.dtype(encoded["dtype"]))
    return flat.reshape(encoded["shape"]).copy()
