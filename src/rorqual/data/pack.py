"""Sequence packing: several documents share a row, and segment ids prevent attention and prediction across
documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from rorqual.core.errors import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

OPEN_ROWS = 64
"""Default maximum number of rows that first-fit packing keeps open at a time."""
PADDING = -1
"""Segment id of padding positions."""


@dataclass(frozen=True)
class TrainingSample:
    """A document: the token ids, a mask that selects the tokens with a loss, and one loss weight for the whole document."""

    ids: Sequence[int]
    mask: Sequence[bool]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.mask):
            raise DataError(
                f"the sample has {len(self.ids)} ids, but its mask has length {len(self.mask)}",
                where="sample",
                remedy="Render the sample again.",
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_trained_tokens(self) -> int:
        """Number of tokens that get a loss. The first token of a document is not predicted and therefore not counted."""
        return int(np.count_nonzero(np.asarray(self.mask, dtype=bool)[1:])) if self.weight else 0

    def truncate(self, length: int) -> TrainingSample:
        """Return a sample with the first `length` tokens of this sample."""
        return TrainingSample(self.ids[:length], self.mask[:length], self.weight)


@dataclass(frozen=True)
class Batch:
    """A training batch of packed rows. Every array has the shape [rows, T].

    `targets[:, t]` is the token that position t predicts, and `loss_mask[:, t]` is the weight of that prediction in the loss.
    `targets` and `loss_mask` are already shifted. The last position of a document has weight 0. `segments` holds, for each
    position, the index of the document in its row, or -1 for padding. `positions` restarts at 0 in each document.
    """

    tokens: Ints
    targets: Ints
    loss_mask: Floats
    segments: Ints
    positions: Ints

    @property
    def n_rows(self) -> int:
        """Number of rows in the batch."""
        return int(self.tokens.shape[0])

    @property
    def n_tokens(self) -> int:
        """Number of document tokens in the batch, without padding."""
        return int(np.count_nonzero(self.segments != PADDING))

    @property
    def n_trained_tokens(self) -> int:
        """Number of predictions in the batch that get a loss."""
        return int(np.count_nonzero(self.loss_mask))

    def split(self, n: int) -> list[Batch]:
        """Split the batch into `n` micro-batches of consecutive rows. The row counts of the micro-batches differ by at most one."""
        if not 1 <= n <= self.n_rows:
            raise DataError(
                f"{self.n_rows} rows cannot be split into {n} micro-batches",
                where="batch",
                remedy=f"Use 1 to {self.n_rows} micro-batches.",
            )
        cuts = np.array_split(np.arange(self.n_rows), n)
        return [self.rows(int(cut[0]), int(cut[-1]) + 1) for cut in cuts]

    def rows(self, start: int, stop: int) -> Batch:
        """Return a batch of the rows `start` to `stop - 1`."""
        return Batch(**{field.name: getattr(self, field.name)[start:stop] for field in fields(self)})


@dataclass(frozen=True)
class PackedSamples:
    """A batch of packed samples. `places[i]` is the (row, start, length) of sample i in the batch."""

    batch: Batch
    places: list[tuple[int, int, int]]


def first_fit(lengths: Sequence[int], row_length: int, *, open_rows: int = OPEN_ROWS) -> list[list[int]]:
    """Pack samples into rows by first fit. Return the indices of the samples in each row.

    A sample goes into the first open row with enough free tokens, or into a new row if no open row has enough. If `open_rows`
    rows are open, the row with the fewest free tokens is closed before a new row is
    opened. The packing does not depend on the contents of the samples, only on `lengths`.
    """
    rows: list[list[int]] = []
    room: dict[int, int] = {}  # open row -> free tokens, in row order
    for number, length in enumerate(lengths):
        row = next((row for row, free in room.items() if free >= length), None)
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


def check_lengths(samples: Sequence[TrainingSample], row_length: int) -> None:
    """Raise a DataError that names the first sample that is empty or longer than `row_length`."""
    for number, sample in enumerate(samples):
        if len(sample) > row_length:
            raise DataError(
                f"{len(sample)} tokens do not fit a row of {row_length}",
                where=f"sample {number + 1}",
                remedy=f"Set context={len(sample)} or more, or truncate samples.",
            )
        if not len(sample):
            raise DataError("no tokens", where=f"sample {number + 1}", remedy="Remove this sample.")


def pack(samples: Sequence[TrainingSample], row_length: int, *, pad: int = 0) -> PackedSamples:
    """Pack samples into rows of `row_length` tokens by first fit. `pad` is the token id at padding positions.

    Raises DataError for a sample that is empty or longer than `row_length`.
    """
    check_lengths(samples, row_length)
    return pack_rows(samples, first_fit([len(s) for s in samples], row_length), row_length, pad=pad)


def pack_rows(
    samples: Sequence[TrainingSample], rows: Sequence[Sequence[int]], row_length: int, *, pad: int = 0
) -> PackedSamples:
    """Build a batch from packed rows. `rows[r]` has the indices of the samples in
    row r, which must fit into `row_length` tokens together."""
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
    return PackedSamples(batch, [places[number] for number in sorted(places)])
