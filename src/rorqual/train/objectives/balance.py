"""DeepSeek-V3's sequence-wise balance loss (eq. 17-20). The loss balances the expert load within each sequence."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from rorqual.core.config import NonNegative
from rorqual.model.decoder import Decoder, DecoderOutput
from rorqual.ops.moe import sequence_balance_loss
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives.objective import LossTerm, Objective


class SequenceBalance(Objective):
    """The sequence-wise balance loss: the mean over documents, summed over layers. `coefficient` is DeepSeek-V3's alpha
    (0.0001)."""

    kind: Literal["sequence_balance"] = "sequence_balance"
    reads_hidden: ClassVar[bool] = False
    coefficient: NonNegative = 1e-4

    def weight(self, batch: TrainBatch) -> float:
        return float(len(batch.document_indices[batch.segments >= 0].unique()))

    def term(self, model: Decoder, batch: TrainBatch, output: DecoderOutput) -> LossTerm:
        valid = batch.segments.flatten() >= 0
        distinct, number = batch.document_indices.flatten()[valid].unique(return_inverse=True)
        total = output.hidden.new_zeros((), dtype=torch.float32)
        for routing in output.routing:
            scores = routing.scores[valid]
            chosen = scores.topk(routing.indices.shape[-1], dim=-1).indices  # eq. 18 uses the scores without bias
            total = total + sequence_balance_loss(scores, chosen, number, len(distinct))
        return LossTerm(total)
