"""The auxiliary load-balancing loss (GShard, 2006.16668; Switch, 2101.03961, eq. 4-6). DeepSeek-V3 balances with a router bias
instead."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from rorqual.core.config import NonNegative
from rorqual.model.decoder import Decoder, DecoderOutput
from rorqual.ops.moe import sequence_balance_loss
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives.objective import LossTerm, Objective


class AuxBalance(Objective):
    """The auxiliary balance loss E sum_i f_i P_i over a batch, summed over the layers of the main model.

    E is the number of experts, and f_i is the share of choices for expert i. P_i is the mean of the tokens' affinities
    for expert i, after each token's affinities are normalized to sum to 1. The loss of a layer with an even expert load is 1.
    `coefficient` is the Switch paper's alpha (0.01).

    The loss multiplies two means over the whole batch, so a run with this objective must have one micro-batch.
    """

    kind: Literal["aux_balance"] = "aux_balance"
    reads_hidden: ClassVar[bool] = False
    coefficient: NonNegative = 0.01

    def weight(self, batch: TrainBatch) -> float:
        return float(batch.n_tokens)

    def term(self, model: Decoder, batch: TrainBatch, output: DecoderOutput) -> LossTerm:
        valid = batch.segments.flatten() >= 0
        sequence = torch.zeros(batch.n_tokens, dtype=torch.long, device=valid.device)  # treat the batch as one sequence
        total = output.hidden.new_zeros((), dtype=torch.float32)
        for routing in output.routing:
            total = total + sequence_balance_loss(routing.scores[valid], routing.indices[valid], sequence, 1)
        return LossTerm(total * batch.n_tokens)
