"""What every side of benchmarks/decode.py speaks: one JSON line in, one measurement out, the rest to stderr.

Imported by sides that run in Pythons of their own: nothing but the standard library here.
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
    """`batch` distinct prompts of `length` ids in [3, vocab): the same on every side."""
    draw = random.Random(f"{seed} {batch} {length}")
    return [[draw.randrange(3, vocab) for _ in range(length)] for _ in range(batch)]


class Watch:
    """Wall and processor seconds since the last mark."""

    def __init__(self) -> None:
        self._wall, self._core = time.perf_counter(), time.process_time()

    def lap(self) -> list[float]:
        """[wall, processor] seconds since the last lap."""
        wall, core = time.perf_counter(), time.process_time()
        spent = [wall - self._wall, core - self._core]
        self._wall, self._core = wall, core
        return spent


def told(
    prefill: list[float], prefilled: int, decode: list[float], decoded: int, replies: Sequence[Sequence[int]]
) -> Told:
    """A measurement. `prefill`, `decode`: [wall, processor] seconds of so many tokens; the replies for a check of who says the same."""
    return {
        "prefill": prefill,
        "prefilled": prefilled,
        "decode": decode,
        "decoded": decoded,
        "replies": [list(reply)[:8] for reply in replies],
    }


def answer(info: Told, measure: Callable[[Told], Told]) -> None:
    """Say `info`, then measure what is asked, line by line, until the input ends. A side that cannot do it says why.

    Asked are `batch`, `prompt` and `new`; with `warm`, a side may take the prompts' cache of its last measurement where it
    was of the same shape, and tell no prefill; `setting` is the side's own business.
    """
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    print(json.dumps(info), file=out, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            found = measure(asked)
        except (RuntimeError, ValueError, MemoryError, NotImplementedError, KeyError, TypeError) as error:
            found = {"error": f"{type(error).__name__}: {error}"[:400]}
        print(json.dumps(found), file=out, flush=True)
