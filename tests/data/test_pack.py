"""Packing loses no token, trains what was to be trained, and never lets a document predict another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rorqual.core.errors import DataError
from rorqual.data.pack import TrainingSample, first_fit, pack

ROW = 12
ARRAYS = ("tokens", "targets", "loss_mask", "segments", "positions")


@st.composite
def samples(draw: st.DrawFn) -> list[TrainingSample]:
    """Samples whose ids are all different, so that any mix of two shows."""
    shapes = draw(st.lists(st.lists(st.booleans(), min_size=1, max_size=ROW), min_size=1, max_size=20))
    weights = draw(st.lists(st.sampled_from([1.0, 0.5, 2.0]), min_size=len(shapes), max_size=len(shapes)))
    return [
        TrainingSample([100 * number + 1 + at for at in range(len(mask))], mask, weight)
        for number, (mask, weight) in enumerate(zip(shapes, weights))
    ]


@given(samples=samples())
def test_every_token_lies_once_where_its_place_says(samples: list[TrainingSample]) -> None:
    packed = pack(samples, ROW)
    batch = packed.batch
    for sample, (row, start, length) in zip(samples, packed.places, strict=True):
        assert batch.tokens[row, start : start + length].tolist() == list(sample.ids)
        assert batch.positions[row, start : start + length].tolist() == list(range(length))
        assert len(set(batch.segments[row, start : start + length].tolist())) == 1
    assert batch.n_tokens == sum(len(sample) for sample in samples)
    assert batch.n_trained_tokens == sum(sample.n_trained_tokens for sample in samples)
    used = batch.tokens[batch.segments >= 0]
    assert sorted(used.tolist()) == sorted(id_ for sample in samples for id_ in sample.ids)


@given(samples=samples())
def test_a_loss_counts_exactly_the_masked_tokens_predicted_from_the_one_before(samples: list[TrainingSample]) -> None:
    batch = pack(samples, ROW).batch
    wanted = sorted(
        (before, after, sample.weight)
        for sample in samples
        for before, after, on in zip(sample.ids, sample.ids[1:], sample.mask[1:])
        if on
    )
    found = [(batch.tokens[at], batch.targets[at], batch.loss_mask[at]) for at in zip(*np.nonzero(batch.loss_mask))]
    assert sorted(found) == wanted


@given(samples=samples())
def test_no_position_predicts_another_document_or_padding(samples: list[TrainingSample]) -> None:
    batch = pack(samples, ROW).batch
    assert not batch.loss_mask[:, -1].any()
    crosses = batch.segments[:, 1:] != batch.segments[:, :-1]
    assert not batch.loss_mask[:, :-1][crosses].any()
    assert not batch.loss_mask[batch.segments < 0].any()
    inside = (~crosses) & (batch.segments[:, 1:] >= 0)
    assert (batch.targets[:, :-1][inside] == batch.tokens[:, 1:][inside]).all()


@given(samples=samples())
def test_segments_count_up_and_padding_comes_last(samples: list[TrainingSample]) -> None:
    for row in pack(samples, ROW).batch.segments.tolist():
        documents = [segment for segment in row if segment >= 0]
        assert row == documents + [-1] * (len(row) - len(documents))
        assert documents == sorted(documents) and set(documents) == set(range(documents[-1] + 1))


@given(lengths=st.lists(st.integers(1, ROW), max_size=40))
def test_first_fit_with_every_row_open_is_the_textbooks(lengths: list[int]) -> None:
    left: list[int] = []
    rows: list[list[int]] = []
    for number, length in enumerate(lengths):
        for row in range(len(left)):
            if left[row] >= length:
                break
        else:
            row = len(left)
            left.append(ROW)
            rows.append([])
        left[row] -= length
        rows[row].append(number)
    assert first_fit(lengths, ROW, open_rows=1000) == rows


@given(samples=samples(), n=st.integers(1, 6))
def test_micro_batches_are_the_rows_in_order(samples: list[TrainingSample], n: int) -> None:
    batch = pack(samples, ROW).batch
    if n > batch.n_rows:
        with pytest.raises(DataError, match=f"cannot be split into {n}"):
            batch.split(n)
        return
    parts = batch.split(n)
    assert len(parts) == n and max(p.n_rows for p in parts) - min(p.n_rows for p in parts) <= 1
    for name in ARRAYS:
        assert (np.concatenate([getattr(part, name) for part in parts]) == getattr(batch, name)).all()
    assert sum(part.n_trained_tokens for part in parts) == batch.n_trained_tokens


def test_a_sample_longer_than_a_row_is_refused_with_its_length() -> None:
    long = TrainingSample(list(range(1, 14)), [False] * 6 + [True] * 7, 0.5)
    fits = TrainingSample(long.ids[:12], long.mask[:12], 0.5)
    with pytest.raises(DataError, match=r"sample 2: 13 tokens do not fit a row of 12") as caught:
        pack([fits, long], ROW)
    assert "context=13" in caught.value.remedy
    assert long.truncate(12) == fits
    assert pack([long], 13).batch.n_trained_tokens == 7


def test_an_empty_or_mismatched_sample_is_refused() -> None:
    with pytest.raises(DataError, match="sample 1: no tokens"):
        pack([TrainingSample([], [])], ROW)
    with pytest.raises(DataError, match="the sample has 3 ids, but its mask has length 2"):
        TrainingSample([1, 2, 3], [True, True])


def test_a_sample_that_only_trains_its_first_token_trains_nothing() -> None:
    assert (
        TrainingSample([1, 2], [True, False]).n_trained_tokens
        == 0
        == pack([TrainingSample([1, 2], [True, False])], ROW).batch.n_trained_tokens
    )
    assert (
        TrainingSample([1, 2], [False, True]).n_trained_tokens
        == 1
        == pack([TrainingSample([1, 2], [False, True])], ROW).batch.n_trained_tokens
    )
    assert TrainingSample([1, 2], [False, True], weight=0.0).n_trained_tokens == 0
