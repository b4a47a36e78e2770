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
from rorqual.data.pack import TrainingSample
from rorqual.data.tokenizer import Tokenizer
from rorqual.recipes.quickstart import FULL, TASK
from rorqual.tasks.find import load_task, safe_problems
from rorqual.train.sources.worked import worked_sample

SAMPLE = "samples/tinyshakespeare-64k.txt"
ORDER = 3
LANES = 10_000
"""Number of texts that are generated in parallel and then concatenated."""


def worked_samples(chat: ChatFormat, seed: int, problems: int = 500) -> Iterator[TrainingSample]:
    """Yield worked solutions of the test split without end. Solutions with and without thinking are mixed as in training.

    The problem generator restarts with a new seed after `problems` problems, because a generator takes longer and longer to
    find new problems.
    """
    task = load_task(TASK, options={"hard": FULL.sft_hard})
    rng = random.Random(f"{seed} held out")
    for number in count():
        for problem in islice(safe_problems(task, "test", 1_000_003 * seed + number), problems):
            yield worked_sample(problem, chat, think=rng.random() < FULL.think)


def text_windows(tokenizer: Tokenizer, text: str, row: int) -> Iterator[TrainingSample]:
    """Yield windows of `row` tokens that do not overlap. Tokens that do not fill a window are dropped."""
    ids = tokenizer.encode(text)
    for start in range(0, len(ids) - row + 1, row):
        yield TrainingSample(ids[start : start + row], [True] * row)


def endless_text(characters: int, seed: int) -> str:
    """Return `characters` characters of third-order Markov text, based on the package's sample of Shakespeare.

    The probability of a character equals the character's frequency in the sample after the same three preceding characters. The
    text can be arbitrarily long and does not repeat itself, so a model cannot memorise it. The loss of a model that trains on
    this text falls smoothly.
    """
    contexts, following = markov_chain()
    rng = np.random.default_rng(seed)
    state = contexts[rng.integers(0, len(contexts), LANES)]
    drawn = np.zeros((math.ceil(characters / LANES), LANES), np.uint8)
    for row in drawn:
        first, end = np.searchsorted(contexts, state, "left"), np.searchsorted(contexts, state, "right")
        row[:] = following[first + (rng.random(LANES) * (end - first)).astype(np.int64)]
        state = (state * 256 + row) % 256**ORDER
    return drawn.T.tobytes().decode("ascii")[:characters]


def markov_chain() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return two arrays: the sorted three-byte contexts of the Shakespeare sample, each as one number, and the byte that
    follows each context.

    The sample counts as circular: its first byte follows its last byte.
    """
    raw = np.frombuffer((files("rorqual.data") / SAMPLE).read_bytes(), np.uint8).astype(np.int64)
    ring = np.concatenate([raw, raw[:ORDER]])
    contexts = np.zeros(len(raw), np.int64)
    for shift in range(ORDER):
        contexts = contexts * 256 + ring[shift : shift + len(raw)]
    order = np.argsort(contexts, kind="stable")
    return contexts[order], ring[ORDER:][order]
