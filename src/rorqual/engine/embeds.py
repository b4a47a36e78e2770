"""Embeddings that stand in a prompt instead of those of its tokens, such as a picture's. This file loads without torch."""

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
    """`rows` [n, hidden] stand at `positions` [n] of a prompt, ascending, where its ids hold placeholders.

    `rows`: a tensor, an array or lists of numbers; they are copied, as float32. A `DataError` names what cannot be used.
    """

    rows: Any
    positions: tuple[int, ...]

    def __post_init__(self) -> None:
        given = self.rows.detach().float().cpu().numpy() if hasattr(self.rows, "detach") else self.rows  # torch's
        try:
            rows = np.array(given, np.float32, order="C")
            positions = tuple(operator.index(place) for place in self.positions)
        except (TypeError, ValueError) as error:
            raise DataError(f"no rows of numbers: {error}", where="embeds", remedy="Give [n, hidden].") from None
        if rows.ndim != 2 or len(rows) != len(positions) or not len(rows):
            what = f"rows of shape {list(rows.shape)} for {len(positions)} positions"
            raise DataError(what, where="embeds", remedy="Give one row [hidden] for each position, one or more.")
        if positions[0] < 0 or any(one >= other for one, other in pairwise(positions)):
            what = "positions that do not ascend from 0 or more"
            raise DataError(what, where="embeds", remedy="Sort them, each once.")
        if not np.isfinite(rows).all():
            raise DataError("a row holds NaN or infinity", where="embeds", remedy="Give finite numbers.")
        rows.setflags(write=False)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "positions", positions)

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that name rows and positions."""
        return _digest(self._places, self.rows)

    def within(self, start: int, stop: int) -> tuple[npt.NDArray[np.int64], Rows]:
        """The positions in start .. stop - 1, counted from `start`, and their rows."""
        first, last = np.searchsorted(self._places, (start, stop))
        return self._places[first:last] - start, self.rows[first:last]

    def extra_keys(self, start: int, stop: int) -> tuple[bytes, ...]:
        """What the hash of the block of positions start .. stop - 1 takes beside its tokens: a digest of its rows; () where it has none."""
        places, rows = self.within(start, stop)
        return (_digest(places, rows),) if len(places) else ()

    @cached_property
    def _places(self) -> npt.NDArray[np.int64]:
        return np.array(self.positions, np.int64)


def _digest(places: npt.NDArray[np.int64], rows: Rows) -> bytes:
    shape = np.array(rows.shape, np.int64)  # so that no row is read as a position
    message = shape.tobytes() + places.tobytes() + rows.tobytes()
    return blake2b(message, digest_size=32, person=b"rorqual embeds").digest()
