"""Multi-token prediction loss (DeepSeek-V3, eq. 24-25): cross-entropy of tokens beyond the next, averaged over the depths."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rorqual.core.config import Count, NonNegative
from rorqual.model.decoder import Decoder, Output
from rorqual.ops.losses import token_logprobs
from rorqual.ops.moe import Routing
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives.base import Objective, Term


class MultiToken(Objective):
    """`coefficient` is the paper's lambda (0.3 in most of V3's training); `depth` is `num_nextn_predict_layers` of the model."""

    kind: Literal["mtp"] = "mtp"
    coefficient: NonNegative = 0.3
    depth: Count = 1

    def weight(self, batch: TrainBatch) -> float:
        return sum(float(_mask(batch, k).sum()) for k in range(1, self.depth + 1))

    def term(self, model: Decoder, batch: TrainBatch, output: Output) -> Term:
        further = model.predict_further(output.hidden, batch.tokens, batch.positions, batch.segments)
        total = output.hidden.new_zeros((), dtype=torch.float32)
        routing: list[Routing] = []
        valid: list[Tensor] = []
        for k, out in enumerate(further, start=1):
            mask = _mask(batch, k)
            at = mask.nonzero(as_tuple=True)
            logprobs = token_logprobs(model.logits(out.hidden[at]), batch.targets[:, k:][at])
            total = total - (logprobs * mask[at]).sum()
            routing.extend(out.routing)
            valid.extend(_within(batch, k).flatten() for _ in out.routing)
        return Term(total, routing=tuple(routing), valid=tuple(valid))


def _within(batch: TrainBatch, k: int) -> Tensor:
    """Return a mask of rows i at depth k whose input token i + k belongs to the same document and is not padding."""
    return (batch.segments[:, k:] >= 0) & (batch.segments[:, k:] == batch.segments[:, :-k])


def _mask(batch: TrainBatch, k: int) -> Tensor:
    """Return the loss mask of depth k. Row i predicts the target of position i + k, if both are in the same document."""
    return batch.loss_mask[:, k:] * _within(batch, k)
