"""Group relative policy optimisation (DeepSeekMath, eq. 3; R1, eq. 1-3) with DAPO's asymmetric clip as an option."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from rorqual.core.errors import NumericsError
from rorqual.model.decoder import Decoder, Output
from rorqual.ops.losses import token_logprobs
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives.base import Objective, Term


class GRPO(Objective):
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with r the ratio of a token's probability to the sampler's.

    `per` 'token': mean over all tokens (DAPO); 'sequence': mean over each answer's tokens, then over answers (R1).
    `temperature` must be the sampler's: ratios are taken under the distribution that was sampled from.
    """

    kind: Literal["grpo"] = "grpo"
    clip_low: float = Field(0.2, ge=0)
    clip_high: float = Field(0.28, ge=0)
    per: Literal["token", "sequence"] = "token"
    temperature: float = Field(1.0, gt=0)

    def weight(self, batch: TrainBatch) -> float:
        return float(self._weights(batch).sum())

    def _weights(self, batch: TrainBatch) -> Tensor:
        if self.per == "token" or batch.lengths is None:
            return batch.loss_mask
        return batch.loss_mask / batch.lengths.clamp_min(1)

    def term(self, model: Decoder, batch: TrainBatch, output: Output) -> Term:
        if batch.advantages is None or batch.sampled_logprobs is None:
            raise NumericsError("grpo needs advantages and the sampler's log-probabilities", where="objectives.grpo")
        at = batch.loss_mask.nonzero(as_tuple=True)
        logits = model.logits(output.hidden[at]) / self.temperature
        now, then = token_logprobs(logits, batch.targets[at]), batch.sampled_logprobs[at]
        advantage, weight = batch.advantages[at], self._weights(batch)[at]
        ratio = (now - then).exp()
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        gain = torch.minimum(ratio * advantage, clipped * advantage)
        with torch.no_grad():
            n, difference = float(len(now)), (now - then).abs().double()
            p = logits.softmax(-1)
            entropy = -(p * p.clamp_min(1e-30).log()).sum()
            bound = float((ratio * advantage > clipped * advantage).sum())
        means = {
            "logprob_diff": (float(difference.sum()), n),
            "entropy": (float(entropy), n),
            "clipped": (bound, n),
        }
        return Term(-(gain * weight).sum(), means, {"logprob_diff": float(difference.max()) if len(now) else 0.0})
