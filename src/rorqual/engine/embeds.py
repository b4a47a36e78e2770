"""Embeddings for the placeholder tokens of a prompt, for example the embeddings of an image. This module does not import torch."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from rorqual.core.errors import DataError

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Embeds:
    """Embeddings `rows` [n, hidden] for the placeholder tokens at the ascending `positions` [n] of a prompt.

    `rows` may be a tensor, an array or nested lists of numbers. `rows` is copied as float32. Raises DataError if `rows` are not
    finite numbers of shape [n, hidden] or `positions` do not ascend.
    """

    rows: Any
    positions: tuple[int, ...]

    def __post_init__(self) -> None:
        given = (
            self.rows.detach().float().cpu().numpy() if hasattr(self.rows, "detach") else self.rows
        )  # a torch tensor
        try:
            rows = np.array(given, np.float32, order="C")
            positions = tuple(operator.index(place) for place in self.positions)
        except (TypeError, ValueError) as error:
            raise _embeds_error(str(error)) from None
        ascending = all(previous < following for previous, following in pairwise((-1, *positions)))
        if rows.ndim != 2 or not len(rows) == len(positions) > 0 or not ascending or not np.isfinite(rows).all():
            raise _embeds_error(f"rows of shape {list(rows.shape)} at the positions {str(positions)[:100]}")
        rows.setflags(write=False)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "positions", positions)

    @cached_property
    def digest(self) -> bytes:
        """A 32-byte hash of `rows` and `positions`."""
        return _digest(self._positions_array, self.rows)

    def embeddings_in_range(self, start: int, stop: int) -> tuple[npt.NDArray[np.int64], Rows]:
        """Return the positions in [start, stop) and the embeddings at these positions. The returned positions are relative to
        `start`."""
        first, last = np.searchsorted(self._positions_array, (start, stop))
        return self._positions_array[first:last] - start, self.rows[first:last]

    def extra_keys(self, start: int, stop: int) -> tuple[bytes, ...]:
        """Return the extra keys for the block hash of positions [start, stop). The only extra key is a digest of the embeddings
        in [start, stop). Return () if [start, stop) has no embeddings."""
        places, rows = self.embeddings_in_range(start, stop)
        return (_digest(places, rows),) if len(places) else ()

    @cached_property
    def _positions_array(self) -> npt.NDArray[np.int64]:
        return np.array(self.positions, np.int64)


def _embeds_error(what: str) -> DataError:
    remedy = "Give finite rows [n, hidden], at least one, and n ascending positions from 0."
    return DataError(f"rows and positions are no embeddings: {what}", where="embeds", remedy=remedy)


def _digest(places: npt.NDArray[np.int64], rows: Rows) -> bytes:
    shape = np.array(rows.shape, np.int64)  # arrays of different shapes can have the same bytes
    message = shape.tobytes() + places.tobytes() + rows.tobytes()
    return blake2b(message, digest_size=32, person=b"rorqual embeds").digest()
