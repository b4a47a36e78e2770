"""Token counts of prompts and replies, for repetition, presence and frequency penalties."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Counts:
    """The distinct tokens in prompt and reply of each row, with their counts in the reply, for rows with penalties.

    A row is the number of a sequence in the batch, below `rows`. A history depends only on the row's ids, so a
    preempted sequence is added again with its reply so far. Counting a token takes constant time. Memory per row with a
    history: 4 bytes per token of the vocabulary, and 12 per distinct token of the longest history.
    """

    def __init__(self, rows: int, vocab_size: int) -> None:
        self._place = np.full(rows, -1, np.int64)  # index of a row's history; -1: none
        self._free: list[int] = []
        self._column = np.full((0, vocab_size), -1, np.int32)  # column of a token in `_ids`; -1: not seen
        self._ids = np.zeros((0, 64), np.int64)
        self._times = np.zeros((0, 64), np.float32)  # exact to 2^24
        self._used = np.zeros(0, np.int64)

    def add(self, row: int, prompt: Sequence[int], reply: Sequence[int] = ()) -> None:
        """Start the history of `row` with its prompt (at least one id) and its reply so far.

        Call it for rows with `needs_history(params)`.
        """
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
        """Count one new token `tokens` [n] for each of the distinct `rows` [n]. Rows without a history are skipped."""
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
        """Move the history of row `from_` to row `to` and drop the one at `to`. Either row may lack a history."""
        self.drop(to)
        self._place[to], self._place[from_] = self._place[from_], -1

    def drop(self, row: int) -> None:
        """Free the history of `row`, if it has one."""
        if self._place[row] >= 0:
            self._free.append(int(self._place[row]))
            self._place[row] = -1

    def of(self, rows: Ints) -> tuple[Ints, npt.NDArray[np.float32]]:
        """Return the distinct tokens of `rows` [n] and their counts in the reply, each [n, most distinct tokens of a
        row].

        A row with fewer tokens repeats its last one. Raises KeyError for a row without a history.
        """
        places = self._place[rows]
        if (places < 0).any():
            raise KeyError(f"rows {rows[places < 0].tolist()} have no history: call `add` first")
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
