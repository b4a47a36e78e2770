"""Data of the balance experiments: worked solutions of the families, and an endless text."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from importlib.resources import files
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

from rorqual.data.chat import ChatFormat
from rorqual.data.pack import Batch, pack
from rorqual.data.tokenizer import Tokenizer
from rorqual.recipes.quickstart import FULL, TASK
from rorqual.tasks.find import load_task, safe_problems
from rorqual.train.batch import TrainBatch
from rorqual.train.sources.worked import worked_sample

SAMPLE = "samples/tinyshakespeare-64k.txt"
ORDER = 3
LANES = 10_000
"""Number of texts that are generated in parallel and then concatenated."""


def worked_blocks(chat: ChatFormat, seed: int, tokens: int, rows: int, problems: int = 500) -> Iterator[TrainBatch]:
    """Yield blocks of packed worked solutions from the test split. Stop when the blocks contain `tokens` tokens,
    excluding padding.

    The solutions are mixed as in training. The problem generator restarts with a new seed after `problems` problems,
    because it finds new problems more and more slowly.
    """
    task = load_task(TASK, options={"hard": FULL.sft_hard})
    rng = random.Random(f"{seed} held out")
    for number in count():
        chunk = islice(safe_problems(task, "test", 1_000_003 * seed + number), problems)
        samples = [worked_sample(problem, chat, think=rng.random() < FULL.think) for problem in chunk]
        packed = pack(samples, FULL.row, pad=chat.pad).batch
        for start in range(0, packed.n_rows, rows):
            block = packed.rows(start, min(start + rows, packed.n_rows))
            yield TrainBatch.from_packed(block)
            tokens -= block.n_tokens
            if tokens <= 0:
                return


def text_blocks(tokenizer: Tokenizer, text: str, row: int, rows: int) -> Iterator[TrainBatch]:
    """Yield blocks of non-overlapping windows of `row` tokens with next-token targets. Tokens that do not fill a block
    are dropped."""
    ids = np.asarray(tokenizer.encode(text), dtype=np.int64)
    size = rows * row
    for start in range(0, len(ids) - size, size):
        tokens, targets = (ids[start + shift : start + shift + size].reshape(rows, row) for shift in (0, 1))
        positions = np.broadcast_to(np.arange(row), (rows, row)).copy()
        yield TrainBatch.from_packed(
            Batch(tokens, targets, np.ones((rows, row), np.float32), np.zeros((rows, row), np.int64), positions)
        )


def endless_text(characters: int, seed: int) -> str:
    """Return `characters` characters of third-order Markov text, based on the package's sample of Shakespeare.

    The probability of a character depends on the three characters before it, and equals its frequency after them in the
    sample. The text can be arbitrarily long and does not repeat itself, so a model cannot memorise it. The training loss
    falls smoothly.
    """
    contexts, following = chain()
    rng = np.random.default_rng(seed)
    state = contexts[rng.integers(0, len(contexts), LANES)]
    drawn = np.zeros((math.ceil(characters / LANES), LANES), np.uint8)
    for row in drawn:
        first, end = np.searchsorted(contexts, state, "left"), np.searchsorted(contexts, state, "right")
        row[:] = following[first + (rng.random(LANES) * (end - first)).astype(np.int64)]
        state = (state * 256 + row) % 256**ORDER
    return drawn.T.tobytes().decode("ascii")[:characters]


def chain() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return two arrays: the sorted three-byte contexts of the sample, each as one number, and the byte that follows
    each context.

    The sample is circular: its first byte follows its last byte.
    """
    raw = np.frombuffer((files("rorqual.data") / SAMPLE).read_bytes(), np.uint8).astype(np.int64)
    ring = np.concatenate([raw, raw[:ORDER]])
    contexts = np.zeros(len(raw), np.int64)
    for shift in range(ORDER):
        contexts = contexts * 256 + ring[shift : shift + len(raw)]
    order = np.argsort(contexts, kind="stable")
    return contexts[order], ring[ORDER:][order]
