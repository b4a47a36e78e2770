"""Token counts of prompts and replies, for repetition, presence and frequency penalties."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Counts:
    """Token histories of the sequences with penalties: the distinct tokens of prompt and reply, and the count of each
    token in the reply.

    A row is the index of a sequence, from 0 to `rows` - 1. A history depends only on the row's token ids. When a
    preempted sequence resumes, its history is rebuilt from the sequence's token ids. Counting a token takes constant
    time. A history takes 4 bytes per vocabulary token, and 12 bytes per distinct token of the longest history.
    """

    def __init__(self, rows: int, vocab_size: int) -> None:
        self._place = np.full(rows, -1, np.int64)  # index of each row's history, or -1
        self._free: list[int] = []
        self._column = np.full(
            (0, vocab_size), -1, np.int32
        )  # column of each token in `_ids`, or -1 if the token has not occurred
        self._ids = np.zeros((0, 64), np.int64)
        self._counts = np.zeros((0, 64), np.float32)  # float32 counts are exact up to 2^24
        self._used = np.zeros(0, np.int64)

    def add(self, row: int, prompt: Sequence[int], reply: Sequence[int] = ()) -> None:
        """Create the history of `row` from the prompt (at least one token id) and the reply so far.

        Only rows whose parameters satisfy `needs_history` need a history.
        """
        self.drop(row)
        if not self._free:
            self._more_places()
        place = self._free.pop()
        self._place[row] = place
        reply_ids, counts = np.unique(np.asarray(reply, np.int64), return_counts=True)
        ids = np.union1d(np.asarray(prompt, np.int64), reply_ids)
        self._more_columns(len(ids))
        self._column[place] = -1
        self._column[place, ids] = np.arange(len(ids))
        self._ids[place, : len(ids)] = ids
        self._counts[place] = 0
        self._counts[place, self._column[place, reply_ids]] = counts
        self._used[place] = len(ids)

    def tally(self, rows: Ints, tokens: Ints) -> None:
        """For each row, add the new token to the row's history.

        `tokens` [n] are the new tokens of the distinct `rows` [n]. Rows without a history are skipped.
        """
        places = self._place[rows]
        has_history = places >= 0
        if not has_history.any():
            return
        places, tokens = places[has_history], tokens[has_history]
        new = self._column[places, tokens] < 0
        if new.any():
            at, id_ = places[new], tokens[new]
            self._more_columns(int(self._used[at].max()) + 1)
            self._column[at, id_] = self._used[at]
            self._ids[at, self._used[at]] = id_
            self._used[at] += 1
        self._counts[places, self._column[places, tokens]] += 1

    def move(self, to: int, from_: int) -> None:
        """Move the history of row `from_` to row `to`, and drop the previous history of row `to`.

        `from_` and `to` may be rows without a history.
        """
        self.drop(to)
        self._place[to], self._place[from_] = self._place[from_], -1

    def drop(self, row: int) -> None:
        """Free the history of `row`, if it has one."""
        if self._place[row] >= 0:
            self._free.append(int(self._place[row]))
            self._place[row] = -1

    def of(self, rows: Ints) -> tuple[Ints, npt.NDArray[np.float32]]:
        """Return two arrays [n, m] for `rows` [n]: the distinct tokens of each row, and the count of each token in the
        reply.

        m is the largest number of distinct tokens in a row. A row with fewer than m distinct tokens is padded with
        copies of its last token. Raises KeyError for a row without a history.
        """
        places = self._place[rows]
        if (places < 0).any():
            raise KeyError(f"rows {rows[places < 0].tolist()} have no history: call `add` first")
        used = self._used[places, None]
        at = places[:, None], np.minimum(np.arange(used.max()), used - 1)
        return self._ids[at], self._counts[at]

    def _more_places(self) -> None:
        old = len(self._used)
        added = min(max(4, old), len(self._place) - old)
        self._column = np.pad(self._column, ((0, added), (0, 0)), constant_values=-1)
        self._ids = np.pad(self._ids, ((0, added), (0, 0)))
        self._counts = np.pad(self._counts, ((0, added), (0, 0)))
        self._used = np.pad(self._used, (0, added))
        self._free.extend(range(old, old + added))

    def _more_columns(self, needed: int) -> None:
        added = max(needed, 2 * self._ids.shape[1]) - self._ids.shape[1]
        if needed > self._ids.shape[1]:
            self._ids = np.pad(self._ids, ((0, 0), (0, added)))
            self._counts = np.pad(self._counts, ((0, 0), (0, added)))
