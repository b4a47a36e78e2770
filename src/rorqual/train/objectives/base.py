"""The base class of objectives. An objective returns a sum and its weight; the loop divides by the weight of the whole update.

Therefore micro-batches, padding and packing never change a gradient (transformers#34191, trl#2175).
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
    """The loss of one objective on a batch: `sum` is to be minimised, and is not divided by the weight.

    `means` (as sum and weight) and `maxima` go into the metrics record. `routing` holds the expert choices of the objective's
    own layers, and `valid` the mask of their tokens without padding. `logprobs` [rows, seq] holds the targets'
    log-probabilities if the objective `wants_old`.
    """

    sum: Tensor
    means: dict[str, tuple[float, float]] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)
    routing: tuple[Routing, ...] = ()
    valid: tuple[Tensor, ...] = ()
    logprobs: Tensor | None = None


@torch.no_grad()
def sampler_difference(now: Tensor, batch: TrainBatch, at: tuple[Tensor, ...]) -> Term:
    """Return a Term with metrics only: how far the trainer's log-probabilities `now` [n] are from the sampler's.

    `at` holds the indices of the n tokens in the batch. `logprob_diff` covers tokens that the trainer's current weights
    sampled. Tokens of older weights count in `stale_logprob_diff`, and their age in `policy_age`.
    """
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
    """Base class of objectives. `coefficient` scales the objective's mean in the loss."""

    coefficient: NonNegative = 1.0
    reads_hidden: ClassVar[bool] = True
    """False if the loss reads only routing or recorded tensors. Parameters of later layers then get no gradient."""

    @property
    def wants_old(self) -> bool:
        """Whether the loop must store the trainer's log-probabilities before a step's first update (`old_logprobs`)."""
        return False

    def needs(self) -> frozenset[str]:
        """Return the optional batch fields that it requires. A run whose source does not provide them is refused."""
        return frozenset()

    def records(self) -> frozenset[str]:
        """Return the names of tensors that attention must record (`AttentionContext.record`), for `output.recorded`."""
        return frozenset()

    def weight(self, batch: TrainBatch) -> float:
        """Return the batch's share of the update's denominator. It depends on the data only, not on a forward pass."""
        raise NotImplementedError

    def term(self, model: Decoder, batch: TrainBatch, output: Output) -> Term:
        """Return the sum over the batch."""
        raise NotImplementedError
