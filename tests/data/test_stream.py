"""A batch depends on the seed and the step alone, and an epoch holds everything once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rorqual.core.errors import DataError
from rorqual.data.pack import Batch, TrainingSample
from rorqual.data.stream import BatchStream, ConversationStream, GeneratedStream, TextStream

ROWS, T = 3, 16
ARRAYS = ("tokens", "targets", "loss_mask", "segments", "positions")


def conversations(n: int) -> list[TrainingSample]:
    """Each sample is full of its own number, so that a token says where it came from."""
    rng = random.Random(n)
    return [
        TrainingSample([number + 1] * length, [True] * length) for number in range(n) for length in [rng.randint(2, T)]
    ]


def make(rng: random.Random) -> TrainingSample:
    length = rng.randint(2, 10)
    return TrainingSample([rng.randint(1, 9) for _ in range(length)], [False] + [True] * (length - 1))


def text(n: int = 1000) -> np.ndarray:
    return np.arange(n, dtype=np.int64)


KINDS: dict[str, Callable[[int], BatchStream]] = {
    "conversations": lambda seed: ConversationStream(conversations(40), ROWS, T, seed),
    "chunks": lambda seed: TextStream(text(), ROWS, T, seed),
    "generated": lambda seed: GeneratedStream(make, ROWS, T, seed),
}
EVERY = pytest.mark.parametrize("build", KINDS.values(), ids=KINDS.keys())


def same(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS)


@EVERY
def test_resumed_equals_straight(build: Callable[[int], BatchStream]) -> None:
    one = build(7)
    straight = [one.batch(step) for step in range(40)]
    for start in (1, 13, 39):
        resumed = build(7)
        assert all(same(resumed.batch(step), straight[step]) for step in range(start, 40))
    backwards = build(7)
    assert all(same(backwards.batch(step), straight[step]) for step in reversed(range(40)))


@EVERY
def test_seeds_and_steps_differ(build: Callable[[int], BatchStream]) -> None:
    assert not same(build(0).batch(0), build(1).batch(0))
    assert not same(build(0).batch(0), build(0).batch(1))


@given(n=st.integers(1, 60), rows=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_every_conversation_is_there_once_in_each_epoch(n: int, rows: int, seed: int) -> None:
    samples = conversations(n)
    stream = ConversationStream(samples, rows, T, seed)
    order = [numbers for step in range(stream.steps_for_epochs(3)) for numbers in stream.sample_rows(step)]
    seen = [number for numbers in order for number in numbers]
    for epoch in range(3):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))
    tokens: Counter[int] = Counter()
    for step in range(stream.steps_for_epochs(1)):
        tokens.update(stream.batch(step).tokens[stream.batch(step).segments >= 0].tolist())
    assert all(tokens[number + 1] >= len(sample) for number, sample in enumerate(samples))


@given(n=st.integers(T + 1, 400), rows=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_chunks_predict_each_token_once_in_each_epoch(n: int, rows: int, seed: int) -> None:
    stream = TextStream(text(n), rows, T, seed)
    predicted: list[int] = []
    for step in range(stream.steps_for_epochs(2)):
        batch = stream.batch(step)
        assert (batch.targets == batch.tokens + 1).all() and (batch.positions == np.arange(T)).all()
        for targets, weights in zip(batch.targets, batch.loss_mask):
            predicted += targets[weights > 0].tolist()
    for epoch in range(2):
        assert sorted(predicted[epoch * (n - 1) : (epoch + 1) * (n - 1)]) == list(range(1, n))


def test_a_generated_sample_that_fits_no_row_is_refused_and_one_that_just_fits_is_not() -> None:
    with pytest.raises(DataError, match="17 tokens do not fit a row of 16"):
        GeneratedStream(lambda rng: TrainingSample([1] * 17, [True] * 17), ROWS, T, 0).batch(0)
    full = GeneratedStream(lambda rng: TrainingSample([1] * 16, [True] * 16), ROWS, T, 0).batch(0)
    assert full.n_tokens == full.tokens.size


def test_a_set_with_nothing_to_train_on_is_refused_and_one_trained_token_is_enough() -> None:
    masked = TrainingSample([1, 2], [True, False])
    for samples in ([], [masked, masked]):
        with pytest.raises(DataError, match="nothing to train on"):
            ConversationStream(samples, ROWS, T, 0)
    stream = ConversationStream([masked, TrainingSample([1, 2], [False, True])], ROWS, T, 0)
    assert stream.skipped == 1 and all(stream.batch(step).loss_mask.any(axis=1).all() for step in range(5))


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="sample 2: 17 tokens"):
        ConversationStream([TrainingSample([1, 2], [True, True]), TrainingSample([1] * 17, [True] * 17)], ROWS, T, 0)
    with pytest.raises(DataError, match="a text of 16 tokens"):
        TextStream(text(16), ROWS, T, 0)
    assert TextStream(text(17), ROWS, T, 0).batch(0).n_tokens == ROWS * T
