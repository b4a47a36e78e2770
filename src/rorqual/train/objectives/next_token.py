"""The next-token cross-entropy loss."""

from __future__ import annotations

from typing import Literal

from rorqual.model.decoder import Decoder, DecoderOutput
from rorqual.ops.losses import token_logprobs
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives.objective import LossTerm, Objective


class NextToken(Objective):
    """Mean next-token cross-entropy over trained tokens, in nats."""

    kind: Literal["next_token"] = "next_token"

    def weight(self, batch: TrainBatch) -> float:
        return float(batch.loss_mask.sum())

    def term(self, model: Decoder, batch: TrainBatch, output: DecoderOutput) -> LossTerm:
        at = batch.loss_mask.nonzero(as_tuple=True)
        logprobs = token_logprobs(model.logits(output.hidden[at]), batch.targets[at])
        return LossTerm(-(logprobs * batch.loss_mask[at]).sum())
