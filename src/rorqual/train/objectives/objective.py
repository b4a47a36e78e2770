"""Base class of the objectives. An objective returns the sum of its loss over tokens, and the weight by which the sum is
divided.

The training loop divides this sum by the weight of the whole update, so that micro-batches, padding and packing do not change
the gradient (transformers#34191, trl#2175).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from rorqual.core.config import KindConfig, NonNegative
from rorqual.model.decoder import Decoder, DecoderOutput
from rorqual.ops.moe import Routing
from rorqual.train.batch import TrainBatch


@dataclass
class LossTerm:
    """The loss and the metrics of one objective on a batch. `sum` is the loss before the loop divides by the weight.

    `means` maps metric names to (sum, weight), and `maxima` maps metric names to maxima. `routing` holds the router outputs of
    the layers that the objective itself runs. `valid` holds a mask of non-padding tokens for each layer in `routing`.
    `logprobs` [rows, seq] are the log-probabilities of the targets if the objective sets `needs_old_logprobs`.
    """

    sum: Tensor
    means: dict[str, tuple[float, float]] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)
    routing: tuple[Routing, ...] = ()
    valid: tuple[Tensor, ...] = ()
    logprobs: Tensor | None = None


@torch.no_grad()
def sampler_difference(now: Tensor, batch: TrainBatch, at: tuple[Tensor, ...]) -> LossTerm:
    """Return a LossTerm that has only metrics: the difference between the trainer's log-probabilities `now` [n] and the
    sampler's.

    `at` holds the indices of the n tokens in the batch. `logprob_diff` covers tokens sampled with the trainer's current
    weights. `stale_logprob_diff` covers tokens sampled with older weights. `policy_age` is the mean policy age of all tokens.
    """
    assert batch.sampled_logprobs is not None
    difference = (now - batch.sampled_logprobs[at]).abs().double()
    if batch.ages is None:
        largest = float(difference.max()) if len(now) else 0.0
        return LossTerm(
            now.new_zeros(()), {"logprob_diff": (float(difference.sum()), float(len(now)))}, {"logprob_diff": largest}
        )
    ages = batch.ages[at]
    fresh, n_stale = difference[ages == 0], float((ages > 0).sum())
    means = {
        "logprob_diff": (float(fresh.sum()), float(len(fresh))),
        "stale_logprob_diff": (float(difference[ages > 0].sum()), n_stale),
        "policy_age": (float(ages.sum()), float(len(ages))),
    }
    return LossTerm(now.new_zeros(()), means, {"logprob_diff": float(fresh.max())} if len(fresh) else {})


class Objective(KindConfig):
    """Base class of the objectives' configs. The loss of an update is the sum of the objectives' mean losses, each multiplied
    by the objective's `coefficient`."""

    coefficient: NonNegative = 1.0
    reads_hidden: ClassVar[bool] = True
    """Whether the objective's loss depends on the hidden states. If the loss depends only on routing or recorded tensors, some
    parameters may have no gradient."""

    rows_together: ClassVar[int] = 1
    """Number of consecutive rows of a batch that stay in one micro-batch. A loss over pairs of rows, such as DPO's, sets 2."""

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether the objective needs `old_logprobs`, the trainer's log-probabilities before the first update of a
        step."""
        return False

    def required_batch_fields(self) -> frozenset[str]:
        """Return the optional batch fields that the objective requires. A run is rejected if its source does not provide all
        required fields."""
        return frozenset()

    def recorded_tensors(self) -> frozenset[str]:
        """Return the names of the tensors that attention must record. `term` reads the recorded tensors from `output.recorded`."""
        return frozenset()

    def weight(self, batch: TrainBatch) -> float:
        """Return the weight of the batch in the update's mean, such as the number of tokens in the batch.

        The weight must not depend on the forward pass.
        """
        raise NotImplementedError

    def term(self, model: Decoder, batch: TrainBatch, output: DecoderOutput) -> LossTerm:
        """Compute the objective's loss and metrics on the batch from the output of the forward pass."""
        raise NotImplementedError
