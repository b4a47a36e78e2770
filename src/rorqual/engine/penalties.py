"""Penalties for what was said before, and biases: what is added to logits before they become a distribution."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rorqual.engine.request import SamplingParams

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Penalties:
    """What each row of a batch adds to its logits, for the rows that do.

    `rows` [penalised rows] have a history in `Counts`, and repetition, presence and frequency penalties, each [penalised rows, 1].
    `biased`: (row, token) [2, biases] with `bias` [biases].
    """

    rows: Ints
    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    biased: Tensor
    bias: Tensor

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device | str) -> Penalties | None:
        """None where no row asks for any."""
        rows = [row for row, p in enumerate(params) if needs_history(p)]
        biases = [(row, token, bias) for row, p in enumerate(params) for token, bias in p.logit_bias]
        if not rows and not biases:
            return None
        asked = [params[row] for row in rows]
        repetition, presence, frequency = (
            torch.tensor([getattr(p, name) for p in asked], dtype=torch.float32, device=device).unsqueeze(1)
            for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")
        )
        biased = torch.tensor([pair[:2] for pair in biases], dtype=torch.int64, device=device).view(-1, 2).t()
        bias = torch.tensor([bias for *_, bias in biases], dtype=torch.float32, device=device)
        return cls(np.array(rows, np.int64), repetition, presence, frequency, biased, bias)

    def apply(self, logits: Tensor, counts: Counts, rows: Ints | None = None) -> Tensor:
        """See `sampler.adjust`."""
        adjusted = logits.float().clone()
        if len(self.rows):
            count, seen = counts.of(self.rows if rows is None else rows[self.rows])
            index = torch.from_numpy(self.rows).to(logits.device)
            x = adjusted[index]
            x = torch.where(seen, torch.where(x > 0, x / self.repetition, x * self.repetition), x)
            x = x - self.frequency * count - self.presence * (count > 0)
            adjusted[index] = x
        if len(self.bias):
            row, token = self.biased
            adjusted[row, token] += self.bias
        return adjusted


def needs_history(params: SamplingParams) -> bool:
    """Whether a row with `params` must be in `Counts`."""
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0


class Counts:
    """How often each token stands in the reply of a row, and whether it stands in its prompt or reply, for rows that need it.

    A row is the batch's number for a sequence, below `rows`. What a row holds follows from its ids alone, so that a sequence that was
    preempted is added again with the reply it had. Memory: 5 bytes a token of the vocabulary for each row that was added at once.
    """

    def __init__(self, rows: int, vocab_size: int, device: torch.device | str) -> None:
        self.vocab_size, self.device = vocab_size, device
        self._place = np.full(rows, -1, np.int64)  # where a row's counts are; -1: it has none
        self._free: list[int] = []
        self._replied = torch.zeros(
            0, vocab_size, device=device
        )  # fp32 is exact to 2^24, and needs no conversion to be multiplied
        self._seen = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)

    def add(self, row: int, prompt: Sequence[int], reply: Sequence[int] = ()) -> None:
        """`row` begins, with its prompt and what of its reply there is; call it where `needs_history(params)`."""
        place = int(self._place[row])
        if place < 0:
            if not self._free:
                self._grow()
            place = self._free.pop()
            self._place[row] = place
        self._seen[place] = False
        self._replied[place] = 0
        for ids in (prompt, reply):
            if len(ids):
                self._seen[place, self._tensor(ids)] = True
        if len(reply):
            self._replied[place] = self._tensor(reply).bincount(minlength=self.vocab_size).float()

    def tally(self, rows: Ints, tokens: Ints) -> None:
        """Each of `rows` [n], none twice, has drawn its token of `tokens` [n]; rows without a history are passed over."""
        places = self._place[rows]
        known = places >= 0
        if not known.any():
            return
        flat = self._tensor(places[known] * self.vocab_size + tokens[known])
        self._seen.view(-1)[flat] = True
        self._replied.view(-1)[flat] += 1

    def move(self, to: int, from_: int) -> None:
        """The sequence at row `from_` is now at `to`, whose own has left; neither needs to have a history."""
        self.drop(to)
        self._place[to], self._place[from_] = self._place[from_], -1

    def drop(self, row: int) -> None:
        """The sequence at `row` has left."""
        if self._place[row] >= 0:
            self._free.append(int(self._place[row]))
            self._place[row] = -1

    def of(self, rows: Ints) -> tuple[Tensor, Tensor]:
        """Of `rows` [n], all of which were added: counts in the reply [n, vocab] fp32, and seen in prompt or reply [n, vocab]."""
        places = self._place[rows]
        if (places < 0).any():
            raise KeyError(f"rows {rows[places < 0].tolist()} have no history: `add` them")
        index = self._tensor(places)
        return self._replied[index], self._seen[index]

    def _grow(self) -> None:
        old, new = len(self._replied), min(max(4, 2 * len(self._replied)), len(self._place))
        self._replied = torch.cat([self._replied, self._replied.new_zeros(new - old, self.vocab_size)])
        self._seen = torch.cat([self._seen, self._seen.new_zeros(new - old, self.vocab_size)])
        self._free.extend(range(old, new))

    def _tensor(self, ids: Iterable[int]) -> Tensor:
        return torch.from_numpy(np.asarray(ids, np.int64)).to(self.device)
