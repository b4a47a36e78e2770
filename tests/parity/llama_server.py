"""llama.cpp as an oracle: `xllamacpp` in a process of its own, asked over the loopback for tokens and probabilities.

The cache is in F32, flash attention is off, one thread: so that what differs from ours is rounding alone.
"""

from __future__ import annotations

import json
import multiprocessing
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

START_SECONDS = 120


@dataclass(frozen=True)
class Step:
    """A greedy token, and by how many nats it beat the second."""

    token: int
    margin: float


def _steps(tokens: Sequence[int], probabilities: Sequence[dict[str, Any]]) -> Iterator[Step]:
    # llama.cpp keeps no probabilities for a token that leaves a letter unfinished: its margin is not known.
    rest = list(probabilities)
    for token in tokens:
        if rest and rest[0]["id"] == token:
            first, second = (top["logprob"] for top in rest.pop(0)["top_logprobs"][:2])
            yield Step(token, first - second)
        else:
            yield Step(token, float("inf"))


class LlamaCpp:
    """A running server; `address` is its own."""

    def __init__(self, address: str) -> None:
        self.address = address

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
            return json.load(answer)

    def tokenize(self, text: str) -> list[int]:
        """Ids of plain text: no special token is read out of it, none is added."""
        body = {"content": text, "add_special": False, "parse_special": False}
        return list(self._post("/tokenize", body)["tokens"])

    def greedy(self, prompt: Sequence[int], count: int) -> list[Step]:
        """`count` tokens after `prompt`; an end-of-turn token is a token like any other."""
        steps: list[Step] = []
        while len(steps) < count:
            body = {
                "prompt": [*prompt, *(step.token for step in steps)],
                "n_predict": count - len(steps),
                "temperature": 0,
                "n_probs": 2,
                "cache_prompt": False,
            }
            answer = self._post("/completion", body | {"return_tokens": True})
            steps += _steps(answer["tokens"], answer["completion_probabilities"])
        return steps[:count]

    def logprobs(self, prompt: Sequence[int], count: int) -> dict[int, float]:
        """Log-probabilities of the `count` likeliest next tokens."""
        body = {"prompt": list(prompt), "n_predict": 1, "temperature": 0, "n_probs": count, "cache_prompt": False}
        (item,) = self._post("/completion", body)["completion_probabilities"]
        return {top["id"]: top["logprob"] for top in item["top_logprobs"]}


@contextmanager
def llama_cpp(model: Path, context: int) -> Iterator[LlamaCpp]:
    """A server on `model` with room for `context` tokens. It has a process of its own: it writes to the terminal and holds threads."""
    forks = multiprocessing.get_context("spawn")
    ours, theirs = forks.Pipe()
    process = forks.Process(target=_serve, args=(str(model), context, theirs), daemon=True)
    process.start()
    try:
        if not ours.poll(START_SECONDS):
            raise TimeoutError(f"llama.cpp did not load {model}")
        address = ours.recv()
        if address is None:
            raise RuntimeError(f"llama.cpp refused {model}")
        yield LlamaCpp(address)
        ours.send("stop")
    finally:
        process.join(5)
        if process.is_alive():
            process.terminate()


def _serve(model: str, context: int, pipe: Connection) -> None:
    import xllamacpp as x

    params = x.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel, params.n_gpu_layers = context, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = x.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup, params.fit_params, params.verbosity = False, False, -1
    params.cache_ram_mib = 0
    try:
        server = x.Server(params)
    except RuntimeError:
        pipe.send(None)
        return
    pipe.send(server.listening_address)
    pipe.recv()
