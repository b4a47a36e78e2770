"""Token counts of prompts and replies, for repetition, presence and frequency penalties."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Counts:
    """Token histories of the sequences with penalties: the distinct tokens of prompt and reply, and the count of each
    token in the reply.

    `row` is a number that identifies a sequence. A history depends only on the sequence's token ids. When a preempted
    sequence resumes, its history is rebuilt from these ids.
    """

    def __init__(self) -> None:
        self._histories: dict[int, dict[int, int]] = {}

    def add(self, row: int, prompt: Sequence[int], reply: Sequence[int] = ()) -> None:
        """Create the history of `row` from the prompt (at least one token id) and the reply so far.

        Only rows whose parameters satisfy `needs_history` need a history.
        """
        history = dict.fromkeys(prompt, 0)
        for token in reply:
            history[token] = history.get(token, 0) + 1
        self._histories[row] = history

    def tally(self, rows: Ints, tokens: Ints) -> None:
        """For each row, add the new token to the row's history.

        `tokens` [n] are the new tokens of the distinct `rows` [n]. Rows without a history are skipped.
        """
        for row, token in zip(rows.tolist(), tokens.tolist()):
            if (history := self._histories.get(row)) is not None:
                history[token] = history.get(token, 0) + 1

    def drop(self, row: int) -> None:
        """Delete the history of `row`, if it has one."""
        self._histories.pop(row, None)

    def of(self, rows: Ints) -> tuple[Ints, npt.NDArray[np.float32]]:
        """Return two arrays [n, m] for `rows` [n]: the distinct tokens of each row, and the count of each token in the
        reply.

        m is the largest number of distinct tokens in a row. A row with fewer than m distinct tokens is padded with
        copies of its last token. Raises KeyError for a row without a history.
        """
        histories = [self._histories[row] for row in rows.tolist()]
        most = max(map(len, histories))
        ids, counts = np.zeros((len(histories), most), np.int64), np.zeros((len(histories), most), np.float32)
        for place, history in enumerate(histories):
            used = len(history)
            ids[place, :used], counts[place, :used] = list(history), list(history.values())
            ids[place, used:], counts[place, used:] = ids[place, used - 1], counts[place, used - 1]
        return ids, counts
