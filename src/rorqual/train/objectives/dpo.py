"""Direct preference optimization (Rafailov et al. 2305.18290)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch.nn.functional import logsigmoid

from rorqual.core.config import Positive
from rorqual.model.decoder import Decoder, DecoderOutput
from rorqual.ops.losses import token_logprobs
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives.objective import LossTerm, Objective


class DPO(Objective):
    """The DPO loss (eq. 7), averaged over pairs of rows: -log sigmoid(r_w - r_l).

    The reward r of a reply is `beta` times the sum, over the reply's tokens, of the model's log-probabilities minus the
    reference model's. r_w belongs to the first row of a pair, the preferred reply, and r_l to the second.
    """

    kind: Literal["dpo"] = "dpo"
    beta: Positive = 0.1
    rows_together: ClassVar[int] = 2

    def required_batch_fields(self) -> frozenset[str]:
        return frozenset({"reference_logprobs"})

    def weight(self, batch: TrainBatch) -> float:
        return len(batch.tokens) / 2

    def term(self, model: Decoder, batch: TrainBatch, output: DecoderOutput) -> LossTerm:
        assert batch.reference_logprobs is not None
        at = batch.loss_mask.nonzero(as_tuple=True)
        logratios = token_logprobs(model.logits(output.hidden[at]), batch.targets[at]) - batch.reference_logprobs[at]
        rewards = self.beta * torch.zeros_like(batch.loss_mask).index_put(at, logratios).sum(-1)
        preferred, non_preferred = rewards[::2], rewards[1::2]
        margins = preferred - non_preferred
        values = {"chosen": preferred, "rejected": non_preferred, "margins": margins, "accuracies": margins > 0}
        means = {f"rewards/{name}": (float(value.detach().sum()), self.weight(batch)) for name, value in values.items()}
        return LossTerm(-logsigmoid(margins).sum(), means)
