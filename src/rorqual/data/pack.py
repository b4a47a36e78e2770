"""Samples into rows: several documents in a row, told apart by segment, none predicting another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from rorqual.core.errors import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

OPEN_ROWS = 64
PADDING = -1
"""Segment of a position that holds no document."""


@dataclass(frozen=True)
class Sample:
    """One document: ids, which of them may be trained on, and how much each of those counts in the loss."""

    ids: Sequence[int]
    mask: Sequence[bool]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.mask):
            raise DataError(
                f"{len(self.ids)} ids with a mask of {len(self.mask)}", where="sample", remedy="Render again."
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_trained(self) -> int:
        """How many tokens a loss can count: the first is predicted by nothing."""
        return int(np.count_nonzero(np.asarray(self.mask, dtype=bool)[1:])) if self.weight else 0

    def cut(self, length: int) -> Sample:
        """The first `length` tokens."""
        return Sample(self.ids[:length], self.mask[:length], self.weight)


@dataclass(frozen=True)
class Batch:
    """Rows to train on. Every array is [rows, T].

    `targets[t]` is the token that position t predicts and `loss_mask[t]` how much that prediction counts (0: not at all),
    so both are already shifted: the last position of a document predicts nothing. `segments` is the number of the
    document in its row (-1: padding) and `positions` restarts at 0 in each.
    """

    tokens: Ints
    targets: Ints
    loss_mask: Floats
    segments: Ints
    positions: Ints

    @property
    def n_rows(self) -> int:
        return int(self.tokens.shape[0])

    @property
    def n_tokens(self) -> int:
        """Tokens of documents, padding left out."""
        return int(np.count_nonzero(self.segments != PADDING))

    @property
    def n_trained(self) -> int:
        """Predictions that count in the loss."""
        return int(np.count_nonzero(self.loss_mask))

    @property
    def fill(self) -> float:
        """Share of positions that hold a document."""
        return self.n_tokens / max(self.tokens.size, 1)

    def split(self, n: int) -> list[Batch]:
        """`n` micro-batches of whole rows, in order, as even as can be."""
        if not 1 <= n <= self.n_rows:
            raise DataError(
                f"{self.n_rows} rows do not split into {n}", where="batch", remedy="Use fewer micro-batches."
            )
        cuts = np.array_split(np.arange(self.n_rows), n)
        return [self.rows(int(cut[0]), int(cut[-1]) + 1) for cut in cuts]

    def rows(self, start: int, stop: int) -> Batch:
        """The rows `start` to `stop`."""
        return Batch(**{field.name: getattr(self, field.name)[start:stop] for field in fields(self)})


@dataclass(frozen=True)
class Packed:
    """A batch, and where in it each sample lies: `places[i]` is (row, start, length) of sample i."""

    batch: Batch
    places: list[tuple[int, int, int]]


def first_fit(lengths: Sequence[int], row_length: int, *, open_rows: int = OPEN_ROWS) -> list[list[int]]:
    """Rows as lists of sample numbers: each sample goes into the first open row with room, else into a new one.

    At most `open_rows` rows are open; the fullest is closed for a new one. Same lengths, same rows.
    """
    rows: list[list[int]] = []
    room: dict[int, int] = {}  # open row -> tokens left, in the order of the rows
    for number, length in enumerate(lengths):
        row = next((row for row, left in room.items() if left >= length), None)
        if row is None:
            if len(room) >= open_rows:
                del room[min(room, key=room.__getitem__)]
            row = len(rows)
            rows.append([])
            room[row] = row_length
        rows[row].append(number)
        room[row] -= length
        if not room[row]:
            del room[row]
    return rows


def check_lengths(samples: Sequence[Sample], row_length: int) -> None:
    """Refuse a sample that is empty or longer than a row, by number and length."""
    for number, sample in enumerate(samples):
        if len(sample) > row_length:
            raise DataError(
                f"{len(sample)} tokens do not fit a row of {row_length}",
                where=f"sample {number + 1}",
                remedy=f"Set context={len(sample)} or more, or ask for samples to be cut.",
            )
        if not len(sample):
            raise DataError("no tokens", where=f"sample {number + 1}", remedy="Leave it out.")


def pack(
    samples: Sequence[Sample], row_length: int, *, truncate: bool = False, pad: int = 0, open_rows: int = OPEN_ROWS
) -> Packed:
    """Pack samples into rows of `row_length` by first fit.

    A sample longer than a row is a `DataError`, or is cut to its first `row_length` tokens where `truncate` asks for it.
    `pad` fills `tokens` and `targets` where there is nothing; no loss and no segment covers it.
    """
    if truncate:
        samples = [sample.cut(row_length) for sample in samples]
    check_lengths(samples, row_length)
    return lay_out(samples, first_fit([len(s) for s in samples], row_length, open_rows=open_rows), row_length, pad=pad)


def lay_out(samples: Sequence[Sample], rows: Sequence[Sequence[int]], row_length: int, *, pad: int = 0) -> Packed:
    """The arrays of a packing: `rows[r]` lists the samples of row r. Every sample is in one row and fits."""
    shape = (len(rows), row_length)
    batch = Batch(
        tokens=np.full(shape, pad, dtype=np.int64),
        targets=np.full(shape, pad, dtype=np.int64),
        loss_mask=np.zeros(shape, dtype=np.float32),
        segments=np.full(shape, PADDING, dtype=np.int64),
        positions=np.zeros(shape, dtype=np.int64),
    )
    places: dict[int, tuple[int, int, int]] = {}
    for row, numbers in enumerate(rows):
        start = 0
        for segment, number in enumerate(numbers):
            sample = samples[number]
            end = start + len(sample)
            ids = np.asarray(sample.ids, dtype=np.int64)
            batch.tokens[row, start:end] = ids
            batch.targets[row, start : end - 1] = ids[1:]
            batch.loss_mask[row, start : end - 1] = np.asarray(sample.mask, dtype=np.float32)[1:] * sample.weight
            batch.segments[row, start:end] = segment
            batch.positions[row, start:end] = np.arange(len(sample))
            places[number] = (row, start, len(sample))
            start = end
    return Packed(batch, [places[number] for number in sorted(places)])
