"""Distillation from a teacher's next-token distributions, position by position."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from rorqual.core.config import Temperature
from rorqual.core.errors import ConfigError, NumericsError
from rorqual.model.decoder import Decoder, Output
from rorqual.ops.losses import token_logprobs
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives.base import Objective, Term, sampler_difference

Divergence = Literal["forward", "reverse", "skewed", "skewed_reverse"]
Tail = Literal["bucket", "renormalise"]
MOST_MASS = 1.001
TAIL_FLOOR = 1e-7
"""Minimum mass of a teacher's tail. A smaller remainder of fp32 log-probabilities cannot be told from 0."""


class Distil(Objective):
    """Mean divergence over trained tokens, in nats, between the teacher's distribution p and the student's q.

    `divergence` is one of:

    - 'forward': KL(p | q) (Hinton et al., 1503.02531), which covers all modes of the teacher.
    - 'reverse': KL(q | p) (MiniLLM, 2306.08543), which seeks its main modes.
    - 'skewed': KL(p | a p + (1 - a) q), 'skewed_reverse': KL(q | a q + (1 - a) p), with a = `alpha` (DistiLLM, 2402.03898,
      eq. 3 and 4). Their gradients stay bounded where the other distribution is zero.

    On the student's own samples (source on_policy) this is generalized knowledge distillation (GKD, 2306.13649).

    `temperature` T softens both distributions. The mean is multiplied by T^2, so that the gradient keeps its scale (Hinton).

    `tail` handles a teacher with its k most likely tokens only. 'bucket' treats all other tokens as one more event.
    'renormalise' renormalises p and q over the k tokens, and ignores what q gives to the others. If k is the whole
    vocabulary, both equal the full divergence. Otherwise 'bucket' needs T = 1, since an unknown tail cannot be softened.

    `sampling_temperature` is the temperature of the batch's sampled log-probabilities, which the loop compares.
    """

    kind: Literal["distil"] = "distil"
    divergence: Divergence = "forward"
    alpha: float = Field(0.1, ge=0, lt=1)
    temperature: Temperature = 1.0
    tail: Tail = "bucket"
    sampling_temperature: Temperature = 1.0

    def needs(self) -> frozenset[str]:
        return frozenset({"teacher_logprobs"})

    def weight(self, batch: TrainBatch) -> float:
        return float(batch.loss_mask.sum())

    def term(self, model: Decoder, batch: TrainBatch, output: Output) -> Term:
        if batch.teacher_logprobs is None:
            raise NumericsError(
                "distil needs the teacher's log-probabilities",
                where="objectives.distil",
                remedy="Use source distilled with logits=true, or on_policy.",
            )
        at = batch.loss_mask.nonzero(as_tuple=True)
        logits = model.logits(output.hidden[at])
        stored = batch.teacher_logprobs[at]
        mass = stored.detach().exp().sum(-1)
        check_mass(mass)
        p, q = self._aligned(logits, stored, None if batch.teacher_ids is None else batch.teacher_ids[at])
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
        return Term((divergences * batch.loss_mask[at]).sum() * self.temperature**2, means, maxima)

    def _aligned(self, logits: Tensor, stored: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Align teacher and student on the same events: logits [n, vocab], stored [n, k] -> two log-probs [n, k or k + 1]."""
        t, vocab = self.temperature, logits.shape[-1]
        if ids is None and stored.shape[-1] != vocab:
            raise NumericsError(
                f"the teacher's distribution has {stored.shape[-1]} tokens, the student's {vocab}",
                where="objectives.distil",
                remedy="Use a teacher and a student with the same vocabulary.",
            )
        whole = (logits / t).log_softmax(-1)
        p = stored if t == 1 else (stored / t).log_softmax(-1)
        if ids is None:
            return p, whole
        q = whole.gather(-1, ids)
        if ids.shape[-1] == vocab:
            return p, q
        if self.tail == "renormalise":
            return (stored / t).log_softmax(-1), q.log_softmax(-1)
        if t != 1:
            raise ConfigError(
                f"temperature={t} cannot soften the tail of the {ids.shape[-1]} most likely of {vocab} tokens",
                where="objectives.distil",
                remedy="Set temperature=1 or tail=renormalise, or store the teacher's whole distribution.",
            )
        rest_p = (1 - p.double().exp().sum(-1, keepdim=True)).clamp_min(TAIL_FLOOR).log().to(p.dtype)
        rest_q = whole.scatter(-1, ids, float("-inf")).logsumexp(-1, keepdim=True)
        return torch.cat([p, rest_p], -1), torch.cat([q, rest_q], -1)


def check_mass(mass: Tensor) -> None:
    """Raise a NumericsError if a trained position has no distribution: the zeros there mean probabilities of 1 each.

    A source that misplaces distributions by one token would otherwise train on a meaningless divergence, possibly below 0.
    """
    if len(mass) and not float(mass.max()) <= MOST_MASS:
        raise NumericsError(
            f"the teacher's probabilities add up to {float(mass.max()):.4g} at a trained position",
            where="objectives.distil",
            remedy="The log-probabilities are missing or belong to another token. Score the samples again.",
        )


def divergence(kind: Divergence, p: Tensor, q: Tensor, alpha: float) -> Tensor:
    """Return the divergence of log-probabilities of teacher and student: [n, events] -> [n]."""
    if kind == "forward":
        return kl(p, q)
    if kind == "reverse":
        return kl(q, p)
    if kind == "skewed":
        return kl(p, mixture(p, q, alpha))
    return kl(q, mixture(q, p, alpha))


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p | q) of log-probabilities: [n, events] -> [n]. Events with p = 0 add nothing."""
    return (p.exp() * (p - q).masked_fill(p == float("-inf"), 0.0)).sum(-1)


def mixture(p: Tensor, q: Tensor, alpha: float) -> Tensor:
    """Return log(alpha p + (1 - alpha) q)."""
    share = torch.tensor(alpha, dtype=p.dtype, device=p.device)
    return torch.logaddexp(p + share.log(), q + torch.log1p(-share))
