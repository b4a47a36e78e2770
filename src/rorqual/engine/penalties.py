"""Token counts of prompts and replies, for repetition, presence and frequency penalties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass
class _SequenceCounts:
    places: dict[int, int]
    """The index of each distinct token in the arrays `ids` and `counts`."""
    ids: Ints
    counts: npt.NDArray[np.float32]


class TokenCounts:
    """Token histories of the sequences with penalties. A token history holds the distinct tokens of prompt and reply, and the
    count of each token in the reply.

    `row` is a number that identifies a sequence. A token history depends only on the sequence's token ids. When a preempted
    sequence resumes, the sequence's token history is rebuilt from the token ids.
    """

    def __init__(self) -> None:
        self._histories: dict[int, _SequenceCounts] = {}

    def add_sequence(self, row: int, prompt: Sequence[int], reply: Sequence[int] = ()) -> None:
        """Create the token history of `row` from the prompt (at least one token id) and the reply so far.

        Only rows whose sampling parameters satisfy `needs_history` need a token history.
        """
        places = {token: place for place, token in enumerate(dict.fromkeys([*prompt, *reply]))}
        counts = np.zeros(len(places), np.float32)
        for token in reply:
            counts[places[token]] += 1
        self._histories[row] = _SequenceCounts(places, np.array(list(places), np.int64), counts)

    def add_tokens(self, rows: Ints, tokens: Ints) -> None:
        """Add each row's new token to the row's token history.

        `tokens` [n] are the new tokens of the distinct rows `rows` [n]. `add_tokens` skips rows without a token history.
        """
        for row, token in zip(rows.tolist(), tokens.tolist()):
            if (history := self._histories.get(row)) is None:
                continue
            place = history.places.setdefault(token, len(history.ids))
            if place == len(history.ids):
                history.ids = np.append(history.ids, token)
                history.counts = np.append(history.counts, np.float32(0))
            history.counts[place] += 1

    def drop(self, row: int) -> None:
        """Delete the token history of `row`, if `row` has a token history."""
        self._histories.pop(row, None)

    def counts_of_rows(self, rows: Ints) -> tuple[Ints, npt.NDArray[np.float32]]:
        """Return two arrays [n, m] for the rows `rows` [n]: the distinct tokens of each row's prompt and reply, and the count
        of each token in the reply.

        m is the largest number of distinct tokens in a row. A row with fewer than m distinct tokens is padded with copies of
        the row's last token. Raises KeyError for a row without a token history.
        """
        histories = [self._histories[row] for row in rows.tolist()]
        most = max(len(history.ids) for history in histories)
        ids, counts = np.empty((len(histories), most), np.int64), np.empty((len(histories), most), np.float32)
        for place, history in enumerate(histories):
            used = len(history.ids)
            ids[place, :used], counts[place, :used] = history.ids, history.counts
            ids[place, used:], counts[place, used:] = history.ids[-1], history.counts[-1]
        return ids, counts
