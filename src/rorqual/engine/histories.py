"""Store the token ids of each sequence, and per-token results such as log-probabilities. The stored token ids and results are
indexed by slot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rorqual.engine.sequence import InputBatch, Sequence


@dataclass(frozen=True)
class SampledReply:
    """A finished reply: its token ids, log-probabilities, expert ids, tokens that pass top-k and top-p filtering, and most
    likely tokens.

    `Completion` documents the shapes of the per-token results.
    """

    token_ids: list[int]
    logprobs: list[float]
    experts: Tensor | None
    kept: npt.NDArray[np.uint8] | None
    top: list[list[tuple[int, float]]] | None


@dataclass(frozen=True)
class SavedHistory:
    """Per-token results of a preempted sequence. The second prefill of a preempted sequence does not recompute per-token
    results such as log-probabilities, so the results are saved."""

    logprobs: npt.NDArray[np.float32]
    kept: npt.NDArray[np.uint8]
    top: list[list[tuple[int, float]]]


class SequenceHistories:
    """The token ids and the per-token results of `slots` sequences of at most `max_len` tokens, indexed by slot and position.

    With `record_kept`, the tokens that pass top-k and top-p filtering are stored as one bit per vocabulary token.
    """

    def __init__(self, slots: int, max_len: int, vocab: int, *, record_kept: bool) -> None:
        # np.zeros takes memory only for pages that are written, so memory use depends on the actual lengths, not on
        # `max_len`.
        self.ids = np.zeros((slots, max_len), np.int64)
        self.logprobs = np.zeros((slots, max_len), np.float32)
        self.kept = np.zeros((slots, max_len, -(-vocab // 8) if record_kept else 0), np.uint8)
        self.top: dict[int, list[list[tuple[int, float]]]] = {}  # slot -> most likely tokens, if requested

    def load_sequence(self, sequence: Sequence) -> None:
        """Write the history of a newly admitted sequence into the sequence's slot."""
        slot, known = sequence.slot, len(sequence.tokens)
        self.ids[slot, :known] = sequence.tokens
        self.top[slot] = []
        start = len(sequence.prompt)
        if isinstance(
            sequence.saved, SavedHistory
        ):  # keep `saved`: the sequence may be preempted again before it samples a token
            self.logprobs[slot, start:known] = sequence.saved.logprobs
            self.kept[slot, start:known] = sequence.saved.kept
            self.top[slot] = list(sequence.saved.top)

    def tokens(self, slot: int, length: int) -> list[int]:
        """Return the first `length` token ids of the sequence in `slot`."""
        ids: list[int] = self.ids[slot, :length].tolist()
        return ids

    def save(self, slot: int, start: int, length: int) -> SavedHistory:
        """Return the per-token results of tokens [start, length) of the sequence in `slot`."""
        part = slice(start, length)
        return SavedHistory(self.logprobs[slot, part].copy(), self.kept[slot, part].copy(), self.top[slot])

    def newest_logprobs(
        self, running: list[Sequence], rows: InputBatch
    ) -> tuple[list[float], list[tuple[tuple[int, float], ...]]]:
        """Return the log-probability of each row's newest token, and the most likely tokens at the position of this token, as
        two lists.

        A row's most likely tokens are () unless the row's request sets `top_logprobs`.
        """
        n = len(running)
        logprobs: list[float] = self.logprobs[rows.slot[:n], rows.position[:n]].tolist()
        best = [tuple(self.top[s.slot][-1]) if s.params.top_logprobs else () for s in running]
        return logprobs, best

    def sampled_reply(self, sequence: Sequence, length: int, experts: Tensor | None) -> SampledReply:
        """Return the reply of a finished sequence. `length` is the sequence's number of tokens, prompt and reply together.
        `experts` [length - 1, routers, k] are the experts of the sequence's tokens."""
        slot, part = sequence.slot, slice(len(sequence.prompt), length)
        kept = self.kept[slot, part].copy() if self.kept.shape[-1] else None
        best = self.top[slot] if sequence.params.top_logprobs else None
        return SampledReply(self.ids[slot, part].tolist(), self.logprobs[slot, part].tolist(), experts, kept, best)
