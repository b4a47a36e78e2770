"""Run our engine with submit and step.

python rorqual_side.py RUN --dtype bfloat16 --threads 1 [--backend native]
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from talk import Told, Watch, answer, prompts, told

import rorqual.engine
from rorqual.engine import Engine, Request, SamplingParams


class Ours:
    """Our engine. Older versions may lack batch invariance and the prefix cache, so the constructor's parameters are checked."""

    def __init__(self, run: Path, dtype: str, threads: int, backend: str) -> None:
        known = {
            *inspect.signature(Engine).parameters,
            *getattr(rorqual.engine, "EngineConfig", Engine).__annotations__,
        }
        given: dict[str, Any] = {"dtype": dtype, "threads": threads, "record_experts": False, "slots": 32}
        if "backend" in known:
            given["backend"] = backend
        elif "invariant" in known:
            given["invariant"] = backend == "torch-invariant"
        elif backend != "torch":
            raise SystemExit("this version of the engine has no option invariant=")
        self.cached = "cache_bytes" in known
        # As the server does: several steps in a call, if they last no longer than this together.
        self.seconds = {"seconds": 0.01} if "seconds" in inspect.signature(Engine.step).parameters else {}
        self.engine = Engine(run, **given)
        self.vocab = self.engine.model.config.vocab_size
        self.shape = (0, 0)

    def run(
        self, given: list[list[int]], limit: int, new: int, reuse: bool
    ) -> tuple[list[float], list[float], int, list[list[int]]]:
        """Return the seconds to every prompt's first token, the seconds and tokens of at least `new` further steps, and the replies."""
        params = SamplingParams(max_tokens=limit, ignore_eos=True)
        request_ids = {
            self.engine.submit(Request(prompt_ids=tuple(ids), params=params, reuse=reuse)): row
            for row, ids in enumerate(given)
        }
        replies: list[list[int]] = [[] for _ in given]
        watch = Watch()
        while not all(replies):
            for delta in self.engine.step():
                replies[request_ids[delta.request_id]].append(delta.token)
        first, count = watch.lap(), 0
        while count < new * len(given):
            for delta in self.engine.step(**self.seconds):
                replies[request_ids[delta.request_id]].append(delta.token)
                count += 1
        spent = watch.lap()
        for request_id in request_ids:
            self.engine.cancel(request_id)
        return first, spent, count, replies

    def measure(self, asked: Told) -> Told:
        """Time prefill alone with one token per prompt, then decoding, with the prompts' KV cache if it is kept."""
        batch, length, new = asked["batch"], asked["prompt"], asked["new"]
        given = prompts(batch, length, self.vocab)
        limit = min(self.engine.max_len - length, 2 * new + batch + 8)
        warm = bool(asked.get("warm")) and self.cached and self.shape == (batch, length)
        prefill, prefilled = [0.0, 0.0], 0
        if not warm and self.cached:
            prefill, _, _, _ = self.run(given, 1, 0, reuse=False)
            prefilled = batch * length
            if asked.get("keep"):
                self.run(given, 1, 0, reuse=True)
                self.shape = (batch, length)
        first, decode, count, replies = self.run(given, limit, new, reuse=self.shape == (batch, length))
        if not self.cached:
            prefill, prefilled = first, batch * length
        return told(prefill, prefilled, decode, count, replies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", default="torch")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    side = Ours(a.run, a.dtype, a.threads, a.backend)
    info = {"engine": "rorqual", "system": f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"}
    answer(info | {"vocab": side.vocab, "prefix cache": side.cached}, side.measure)


if __name__ == "__main__":
    sys.exit(main())
