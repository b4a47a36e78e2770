"""DeepSeek-V3's sequence-wise balance loss (eq. 17-20). It keeps single sequences from using few experts."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from rorqual.core.config import NonNegative
from rorqual.model.decoder import Decoder, Output
from rorqual.ops.moe import sequence_balance
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives.base import Objective, Term


class SequenceBalance(Objective):
    """Mean over documents, summed over the main model's layers. `coefficient` is the paper's alpha (0.0001 in V3)."""

    kind: Literal["sequence_balance"] = "sequence_balance"
    reads_hidden: ClassVar[bool] = False
    coefficient: NonNegative = 1e-4

    def weight(self, batch: TrainBatch) -> float:
        return float(len(documents(batch)[1]))

    def term(self, model: Decoder, batch: TrainBatch, output: Output) -> Term:
        number, found = documents(batch)
        valid = batch.segments.flatten() >= 0
        total = output.hidden.new_zeros((), dtype=torch.float32)
        for routing in output.routing:
            scores = routing.scores[valid]
            chosen = scores.topk(routing.indices.shape[-1], dim=-1).indices  # by the unbiased scores (eq. 18)
            total = total + sequence_balance(scores, chosen, number, len(found))
        return Term(total)


def documents(batch: TrainBatch) -> tuple[Tensor, Tensor]:
    """Return the document index of each token except padding, in flattened batch order, and the list of documents."""
    rows, width = batch.segments.shape
    row = torch.arange(rows, device=batch.segments.device).unsqueeze(1).expand(rows, width)
    named = (row * (width + 1) + batch.segments)[batch.segments >= 0]
    found, number = named.unique(return_inverse=True)
    return number, found
