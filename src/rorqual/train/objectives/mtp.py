"""The multi-token prediction loss (DeepSeek-V3, eq. 24-25): cross-entropy of the tokens after the next token."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rorqual.core.config import Count, NonNegative
from rorqual.model.decoder import Decoder, DecoderOutput
from rorqual.ops.losses import token_logprobs
from rorqual.ops.moe import Routing
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives.objective import LossTerm, Objective


class MultiToken(Objective):
    """Mean cross-entropy over the predictions of all MTP modules, in nats.

    `coefficient` is DeepSeek-V3's lambda (0.3 in most of V3's training). `depth` must equal the model's
    `num_nextn_predict_layers`.
    """

    kind: Literal["mtp"] = "mtp"
    coefficient: NonNegative = 0.3
    depth: Count = 1

    def weight(self, batch: TrainBatch) -> float:
        return sum(float(_loss_mask(batch, k).sum()) for k in range(1, self.depth + 1))

    def term(self, model: Decoder, batch: TrainBatch, output: DecoderOutput) -> LossTerm:
        outputs = model.predict_with_mtp(output.hidden, batch.tokens, batch.positions, batch.segments)
        total = output.hidden.new_zeros((), dtype=torch.float32)
        routing: list[Routing] = []
        valid: list[Tensor] = []
        for k, out in enumerate(outputs, start=1):
            mask = _loss_mask(batch, k)
            at = mask.nonzero(as_tuple=True)
            logprobs = token_logprobs(model.logits(out.hidden[at]), batch.targets[:, k:][at])
            total = total - (logprobs * mask[at]).sum()
            routing.extend(out.routing)
            valid.extend(_same_document_mask(batch, k).flatten() for _ in out.routing)
        return LossTerm(total, routing=tuple(routing), valid=tuple(valid))


def _same_document_mask(batch: TrainBatch, k: int) -> Tensor:
    """Return a mask that is True at position i if token i + k, the input at depth k, is in the document of token i."""
    return (batch.segments[:, k:] >= 0) & (batch.segments[:, k:] == batch.segments[:, :-k])


def _loss_mask(batch: TrainBatch, k: int) -> Tensor:
    """Return the loss mask of depth k. Position i predicts the target of position i + k if both positions are in the
    same document."""
    return batch.loss_mask[:, k:] * _same_document_mask(batch, k)
