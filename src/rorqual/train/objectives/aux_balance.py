"""The classic auxiliary loss for balance (GShard, 2006.16668; Switch, 2101.03961, eq. 4-6): what V3's router bias replaces."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from rorqual.core.config import NonNegative
from rorqual.model.decoder import Decoder, Output
from rorqual.ops.moe import sequence_balance
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives.base import Objective, Term


class AuxBalance(Objective):
    """E sum_i f_i P_i over all tokens of a batch that are no padding, summed over the main model's layers; 1 a layer at balance.

    f_i is the share of choices that went to expert i, P_i its mean affinity, normalised over the experts. `coefficient` is
    Switch's alpha, 0.01 there. A product of two means of the batch: a run with it has one micro-batch.
    """

    kind: Literal["aux_balance"] = "aux_balance"
    reads_hidden: ClassVar[bool] = False
    coefficient: NonNegative = 0.01

    def weight(self, batch: TrainBatch) -> float:
        return float(batch.n_tokens)

    def term(self, model: Decoder, batch: TrainBatch, output: Output) -> Term:
        valid = batch.segments.flatten() >= 0
        one = torch.zeros(
            batch.n_tokens, dtype=torch.long, device=valid.device
        )  # the batch, as if it were one sequence
        total = output.hidden.new_zeros((), dtype=torch.float32)
        for routing in output.routing:
            total = total + sequence_balance(routing.scores[valid], routing.indices[valid], one, 1)
        return Term(total * batch.n_tokens)
