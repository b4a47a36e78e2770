"""Distillation from a teacher's next-token distribution at each position."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from rorqual.core.config import Temperature
from rorqual.core.errors import ConfigError, NumericsError
from rorqual.model.decoder import Decoder, DecoderOutput
from rorqual.ops.losses import token_logprobs
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives.objective import LossTerm, Objective, sampler_difference

Divergence = Literal["forward", "reverse", "skewed", "skewed_reverse"]
MOST_MASS = 1.001
TAIL_FLOOR = 1e-7
"""Lower bound for the teacher's total probability of all tokens outside its top k.

Below `TAIL_FLOOR`, rounding errors of fp32 log-probabilities dominate.
"""


class Distil(Objective):
    """The divergence between the teacher's distribution p and the student's distribution q, averaged over trained
    tokens, in nats.

    `divergence` is one of:

    - 'forward': KL(p | q) (Hinton et al., 1503.02531), which covers all modes of the teacher.
    - 'reverse': KL(q | p) (MiniLLM, 2306.08543), which seeks the teacher's main modes.
    - 'skewed': KL(p | a p + (1 - a) q) with a = `alpha` (DistiLLM, 2402.03898, eq. 3). The gradient stays bounded where the
      student's q is 0.
    - 'skewed_reverse': KL(q | a q + (1 - a) p) (DistiLLM, eq. 4). The gradient stays bounded where the teacher's p is 0.

    With the student's own samples (source on_policy), this objective is generalized knowledge distillation (GKD, 2306.13649).

    `temperature` T softens p and q. The mean divergence is multiplied by T^2 to keep the scale of the gradient (Hinton).

    If only the teacher's k most likely tokens are stored, all other tokens count as one additional event. T must then be 1,
    because the teacher's probabilities of the tokens outside the stored k are unknown.

    `sampling_temperature` is the sampler's temperature, at which trainer and sampler are compared.
    """

    kind: Literal["distil"] = "distil"
    divergence: Divergence = "forward"
    alpha: float = Field(0.1, ge=0, lt=1)
    temperature: Temperature = 1.0
    sampling_temperature: Temperature = 1.0

    def required_batch_fields(self) -> frozenset[str]:
        return frozenset({"teacher_logprobs"})

    def weight(self, batch: TrainBatch) -> float:
        return float(batch.loss_mask.sum())

    def term(self, model: Decoder, batch: TrainBatch, output: DecoderOutput) -> LossTerm:
        assert batch.teacher_logprobs is not None
        at = batch.loss_mask.nonzero(as_tuple=True)
        logits = model.logits(output.hidden[at])
        stored = batch.teacher_logprobs[at]
        mass = stored.detach().exp().sum(-1)
        check_teacher_mass(mass)
        p, q = self._align_logprobs(logits, stored, None if batch.teacher_ids is None else batch.teacher_ids[at])
        divergences = divergence(self.divergence, p, q, self.alpha)
        n = float(len(stored))
        with torch.no_grad():
            own = logits.log_softmax(-1)
            means = {
                "divergence": (float(divergences.sum()), n),
                "entropy": (float(-(own.exp() * own).sum()), n),
                "teacher_mass": (float(mass.sum()), n),
            }
            maxima: dict[str, float] = {}
            if batch.sampled_logprobs is not None:
                now = token_logprobs(logits / self.sampling_temperature, batch.targets[at])
                compared = sampler_difference(now, batch, at)
                means, maxima = means | compared.means, compared.maxima
        return LossTerm((divergences * batch.loss_mask[at]).sum() * self.temperature**2, means, maxima)

    def _align_logprobs(self, logits: Tensor, stored: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of teacher and student. Each of the two tensors is [n, k], or [n, k + 1] with a bucket
        for all tokens outside the top k.

        `logits` [n, vocab] are the student's logits. `stored` [n, k] are the teacher's log-probabilities.
        """
        t, vocab = self.temperature, logits.shape[-1]
        full = (logits / t).log_softmax(-1)
        p = stored if t == 1 else (stored / t).log_softmax(-1)
        if ids is None:
            return p, full
        q = full.gather(-1, ids)
        if ids.shape[-1] == vocab:
            return p, q
        if t != 1:
            raise ConfigError(
                f"temperature={t} needs the teacher's whole distribution, but only {ids.shape[-1]} of {vocab} tokens are stored",
                where="objectives.distil",
                remedy="Set temperature=1, or store the teacher's whole distribution.",
            )
        tail_p = (1 - p.double().exp().sum(-1, keepdim=True)).clamp_min(TAIL_FLOOR).log().to(p.dtype)
        tail_q = full.scatter(-1, ids, float("-inf")).logsumexp(-1, keepdim=True)
        return torch.cat([p, tail_p], -1), torch.cat([q, tail_q], -1)


def check_teacher_mass(mass: Tensor) -> None:
    """Raise NumericsError if the teacher's probabilities add up to more than `MOST_MASS` at a trained position.

    Positions without a teacher distribution store log-probabilities of 0, that is, probabilities of 1. If a source stores the
    distributions one position off, the check fails at a trained position without a distribution.
    """
    if len(mass) and not float(mass.max()) <= MOST_MASS:
        raise NumericsError(
            f"the teacher's probabilities add up to {float(mass.max()):.4g} at a trained position",
            where="objectives.distil",
            remedy="The log-probabilities are missing or belong to another token. Score the samples again.",
        )


def divergence(kind: Divergence, p: Tensor, q: Tensor, alpha: float) -> Tensor:
    """Compute the divergence between teacher p and student q, given log-probabilities [n, events]. Returns [n]."""
    if kind == "forward":
        return kl(p, q)
    if kind == "reverse":
        return kl(q, p)
    if kind == "skewed":
        return kl(p, mixture(p, q, alpha))
    return kl(q, mixture(q, p, alpha))


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Compute KL(p | q) from log-probabilities [n, events]. Returns [n]. Events with p = 0 contribute 0 to KL(p | q)."""
    return (p.exp() * (p - q).masked_fill(p == float("-inf"), 0.0)).sum(-1)


def mixture(p: Tensor, q: Tensor, alpha: float) -> Tensor:
    """Return log(alpha p + (1 - alpha) q), given the log-probabilities of p and q."""
    share = torch.tensor(alpha, dtype=p.dtype, device=p.device)
    return torch.logaddexp(p + share.log(), q + torch.log1p(-share))
