"""Multi-token prediction's loss (V3 eq. 24-25): cross-entropy of the token after the next, mean over the depths."""

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
    """`coefficient` is the paper's lambda: 0.3 for most of V3's training. `depth`: the model's `num_nextn_predict_layers`."""

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
    """Rows i of depth k whose token i + k, which the module reads, is of the same document, and no padding."""
    return (batch.segments[:, k:] >= 0) & (batch.segments[:, k:] == batch.segments[:, :-k])


def _mask(batch: TrainBatch, k: int) -> Tensor:
    """Row i of depth k predicts the target of position i + k: trained where that is, and the document is the same."""
    return batch.loss_mask[:, k:] * _within(batch, k)
