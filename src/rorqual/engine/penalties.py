"""Which tokens a sequence has said, for the penalties of those that ask for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Counts:
    """Which tokens stand in the prompt or the reply of a row, and how often in its reply, for the rows that need it.

    A row is the batch's number for a sequence, below `rows`. What a row holds follows from its ids alone, so that a sequence that was
    preempted is added again with the reply it had. A token drawn costs the same however long the history is. Memory, for each row that
    was here at once: 4 bytes a token of the vocabulary, and 12 a different token of the longest history.
    """

    def __init__(self, rows: int, vocab_size: int) -> None:
        self._place = np.full(rows, -1, np.int64)  # where the history of a row is; -1: it has none
        self._free: list[int] = []
        self._column = np.full((0, vocab_size), -1, np.int32)  # where a token is among `_ids`; -1: it was not seen
        self._ids = np.zeros((0, 64), np.int64)
        self._times = np.zeros((0, 64), np.float32)  # exact to 2^24
        self._used = np.zeros(0, np.int64)

    def add(self, row: int, prompt: Sequence[int], reply: Sequence[int] = ()) -> None:
        """`row` begins, with its prompt (an id at least) and what of its reply there is; call it where `needs_history(params)`."""
        self.drop(row)
        if not self._free:
            self._more_places()
        place = self._free.pop()
        self._place[row] = place
        said, times = np.unique(np.asarray(reply, np.int64), return_counts=True)
        ids = np.union1d(np.asarray(prompt, np.int64), said)
        self._more_columns(len(ids))
        self._column[place] = -1
        self._column[place, ids] = np.arange(len(ids))
        self._ids[place, : len(ids)] = ids
        self._times[place] = 0
        self._times[place, self._column[place, said]] = times
        self._used[place] = len(ids)

    def tally(self, rows: Ints, tokens: Ints) -> None:
        """Each of `rows` [n], none twice, has drawn its token of `tokens` [n]; rows without a history are passed over."""
        places = self._place[rows]
        known = places >= 0
        if not known.any():
            return
        places, tokens = places[known], tokens[known]
        new = self._column[places, tokens] < 0
        if new.any():
            at, id_ = places[new], tokens[new]
            self._more_columns(int(self._used[at].max()) + 1)
            self._column[at, id_] = self._used[at]
            self._ids[at, self._used[at]] = id_
            self._used[at] += 1
        self._times[places, self._column[places, tokens]] += 1

    def move(self, to: int, from_: int) -> None:
        """The sequence at row `from_` is now at `to`, whose own has left; neither needs to have a history."""
        self.drop(to)
        self._place[to], self._place[from_] = self._place[from_], -1

    def drop(self, row: int) -> None:
        """The sequence at `row` has left."""
        if self._place[row] >= 0:
            self._free.append(int(self._place[row]))
            self._place[row] = -1

    def of(self, rows: Ints) -> tuple[Ints, npt.NDArray[np.float32]]:
        """Of `rows` [n], all of which were added: tokens of prompt or reply, and how often in the reply, each [n, most tokens].

        A row with fewer tokens has its last one again and again.
        """
        places = self._place[rows]
        if (places < 0).any():
            raise KeyError(f"rows {rows[places < 0].tolist()} have no history: `add` them")
        used = self._used[places, None]
        at = places[:, None], np.minimum(np.arange(used.max()), used - 1)
        return self._ids[at], self._times[at]

    def _more_places(self) -> None:
        old = len(self._used)
        more = min(max(4, old), len(self._place) - old)
        self._column = np.pad(self._column, ((0, more), (0, 0)), constant_values=-1)
        self._ids = np.pad(self._ids, ((0, more), (0, 0)))
        self._times = np.pad(self._times, ((0, more), (0, 0)))
        self._used = np.pad(self._used, (0, more))
        self._free.extend(range(old, old + more))

    def _more_columns(self, needed: int) -> None:
        more = max(needed, 2 * self._ids.shape[1]) - self._ids.shape[1]
        if needed > self._ids.shape[1]:
            self._ids = np.pad(self._ids, ((0, 0), (0, more)))
            self._times = np.pad(self._times, ((0, 0), (0, more)))
