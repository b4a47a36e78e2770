"""An objective returns a sum and its weight; only the loop divides, by the global weight of an update.

So the number of micro-batches, padding and packing never change a gradient (transformers#34191, trl#2175).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from rorqual.core.config import Kind, NonNegative
from rorqual.model.decoder import Decoder, Output
from rorqual.ops.moe import Routing
from rorqual.train.batch import TrainBatch


@dataclass
class Term:
    """`sum`: what to minimise, summed, not divided. `means` are (sum, weight), `maxima` the largest seen; both for the record.

    `routing`: where the objective's own layers sent their tokens; `valid`, beside each, which of those are no padding.
    `logprobs` [rows, seq]: the targets' log-probabilities, where the objective `wants_old`.
    """

    sum: Tensor
    means: dict[str, tuple[float, float]] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)
    routing: tuple[Routing, ...] = ()
    valid: tuple[Tensor, ...] = ()
    logprobs: Tensor | None = None


@torch.no_grad()
def sampler_difference(now: Tensor, batch: TrainBatch, at: tuple[Tensor, ...]) -> Term:
    """A term of nothing but records: how far the trainer's log-probabilities `now` [n], of the tokens `at` a batch's places, are from the
    sampler's. `logprob_diff` is of what the trainer's very weights drew; what older ones drew counts in `stale_logprob_diff`, and its age in
    `policy_age`."""
    assert batch.sampled_logprobs is not None
    difference = (now - batch.sampled_logprobs[at]).abs().double()
    if batch.ages is None:
        largest = float(difference.max()) if len(now) else 0.0
        return Term(
            now.new_zeros(()), {"logprob_diff": (float(difference.sum()), float(len(now)))}, {"logprob_diff": largest}
        )
    ages = batch.ages[at]
    fresh, n_stale = difference[ages == 0], float((ages > 0).sum())
    means = {
        "logprob_diff": (float(fresh.sum()), float(len(fresh))),
        "stale_logprob_diff": (float(difference[ages > 0].sum()), n_stale),
        "policy_age": (float(ages.sum()), float(len(ages))),
    }
    return Term(now.new_zeros(()), means, {"logprob_diff": float(fresh.max())} if len(fresh) else {})


class Objective(Kind):
    """Base of the objectives. `coefficient` scales its mean in the loss."""

    coefficient: NonNegative = 1.0
    reads_hidden: ClassVar[bool] = True
    """False for a loss on routing or recorded tensors alone: parameters behind the last of them then have no gradient."""

    @property
    def wants_old(self) -> bool:
        """Whether the loop shall keep the trainer's log-probabilities from before a step's first update (`old_logprobs`)."""
        return False

    def needs(self) -> frozenset[str]:
        """Optional fields of a batch that it cannot do without; a run whose source does not give them is refused."""
        return frozenset()

    def records(self) -> frozenset[str]:
        """Names of what attention shall record for it (`AttentionContext.record`); the term finds them in `output.recorded`."""
        return frozenset()

    def weight(self, batch: TrainBatch) -> float:
        """What the batch adds to the global denominator; known from the data alone, before any forward."""
        raise NotImplementedError

    def term(self, model: Decoder, batch: TrainBatch, output: Output) -> Term:
        """The sum over the batch."""
        raise NotImplementedError
