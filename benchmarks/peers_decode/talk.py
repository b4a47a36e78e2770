"""The protocol of all sides of benchmarks/decode.py: one JSON line in, one measurement out, everything else to stderr.

Sides in other Python environments import this module, so it uses only the standard library.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

Prompts = list[list[int]]
Told = dict[str, Any]


def prompts(batch: int, length: int, vocab: int, seed: int = 0) -> Prompts:
    """Return `batch` distinct prompts of `length` ids in [3, vocab), the same on every side."""
    draw = random.Random(f"{seed} {batch} {length}")
    return [[draw.randrange(3, vocab) for _ in range(length)] for _ in range(batch)]


class Watch:
    """A stopwatch for wall-clock and CPU seconds."""

    def __init__(self) -> None:
        self._wall, self._core = time.perf_counter(), time.process_time()

    def lap(self) -> list[float]:
        """Return the [wall-clock, CPU] seconds since the last lap."""
        wall, core = time.perf_counter(), time.process_time()
        spent = [wall - self._wall, core - self._core]
        self._wall, self._core = wall, core
        return spent


def told(
    prefill: list[float], prefilled: int, decode: list[float], decoded: int, replies: Sequence[Sequence[int]]
) -> Told:
    """Return a measurement. `prefill` and `decode` are the [wall-clock, CPU] seconds for `prefilled` and `decoded` tokens.

    The first tokens of the replies let the caller check that the sides agree.
    """
    return {
        "prefill": prefill,
        "prefilled": prefilled,
        "decode": decode,
        "decoded": decoded,
        "replies": [list(reply)[:8] for reply in replies],
    }


def answer(info: Told, measure: Callable[[Told], Told]) -> None:
    """Print `info`, then answer one request per line until stdin ends. A request that fails gets {"error": reason}.

    A request has `batch`, `prompt` and `new`. With `warm`, a side may reuse the prompts' KV cache of its last measurement if the
    shape is the same, and then reports no prefill. `setting` is specific to the side.
    """
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    print(json.dumps(info), file=out, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            found = measure(asked)
        except (RuntimeError, ValueError, MemoryError, NotImplementedError, KeyError, TypeError) as error:
            found = {"error": f"{type(error).__name__}: {error}"[:400]}
        print(json.dumps(found), file=out, flush=True)
