"""Group relative policy optimization (DeepSeekMath, eq. 3; R1, eq. 1-3), with variants from later papers as options.

docs/how-to/grpo.md lists options, papers and keys. All are off by default, except DAPO's asymmetric clip and its mean over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor

from rorqual.core.config import Natural, NonNegative, Temperature
from rorqual.core.errors import NumericsError
from rorqual.model.decoder import Decoder, Output
from rorqual.ops.losses import keep_only, reverse_kl, token_logprobs
from rorqual.ops.rows import ENOUGH
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives.base import Objective, Term, sampler_difference


class GRPO(Objective):
    """The GRPO loss, -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A).

    r is the ratio of a token's probability under the trainer and under the sampler; A is the advantage.

    `temperature` must be the sampler's, because r compares the distributions that were sampled from. If a batch has `kept`
    (the sets that top-p and top-k left), the trainer's distribution is renormalised over them (keep sampling mask, V3.2,
    2512.02556).

    `per` sets how the loss is averaged:

    - 'token': over all tokens (DAPO, 2503.14476).
    - 'sequence': over each answer's tokens, then over answers (R1).
    - 'constant': an answer's sum over tokens divided by `max_tokens`, then the mean over answers (Dr. GRPO, 2503.20783).

    `importance_sampling_level` sets the level at which r is computed:

    - 'token': per token.
    - 'sequence': the geometric mean over an answer, for all its tokens (GSPO, 2507.18071, eq. 5-7).
    - 'sequence_token': that value, with the gradient of each token's own probability (GSPO-token, eq. 13-14).

    `loss_type` 'cispo': clip(r) without gradient, times A log p (CISPO, MiniMax-M1, 2506.13585, eq. 4-5). No token is dropped.
    The paper has no lower bound, which is a clip_low of 1 or more.

    `tis_cap` C (0 disables it): truncated importance sampling (Yao et al. 2025). r is then relative to the trainer's own
    probability before the first update, and the gain is multiplied by min(p_trainer / p_sampler, C) from before that update.

    `beta`: weight of the KL divergence from the batch's `reference_logprobs`. `kl` is 'k3' (R1, eq. 2), or 'unbiased', which
    weights k3 by p / p_sampler with its gradient (V3.2, section 3.1). The term is neither clipped nor masked.

    `off_policy_delta` (0 disables it): drop answers with a negative advantage whose sampler log-probability exceeds the
    trainer's by more than this on average over their tokens (V3.2, section 3.1).
    """

    kind: Literal["grpo"] = "grpo"
    clip_low: NonNegative = 0.2
    clip_high: NonNegative = 0.28
    per: Literal["token", "sequence", "constant"] = "token"
    max_tokens: Natural = 0
    temperature: Temperature = 1.0
    importance_sampling_level: Literal["token", "sequence", "sequence_token"] = "token"
    loss_type: Literal["clip", "cispo"] = "clip"
    tis_cap: NonNegative = 0.0
    beta: NonNegative = 0.0
    kl: Literal["k3", "unbiased"] = "k3"
    off_policy_delta: NonNegative = 0.0

    @model_validator(mode="after")
    def _constant(self) -> Self:
        if self.per == "constant" and not self.max_tokens:
            raise ValueError("per=constant divides by max_tokens: set max_tokens to the source's value")
        return self

    @property
    def wants_old(self) -> bool:
        return self.tis_cap > 0

    def needs(self) -> frozenset[str]:
        reference = {"reference_logprobs"} if self.beta else set()
        return frozenset({"advantages", "sampled_logprobs"} | reference)

    def weight(self, batch: TrainBatch) -> float:
        return float(self._weights(batch).sum())

    def _weights(self, batch: TrainBatch) -> Tensor:
        """Return weights that sum to the denominator: one per token, or one per answer spread over its tokens."""
        if self.per == "token" or batch.lengths is None:
            return batch.loss_mask
        return batch.loss_mask / batch.lengths.clamp_min(1)

    def shares(self, batch: TrainBatch) -> Tensor:
        """Return the weight of each token's gain in the sum."""
        return batch.loss_mask / self.max_tokens if self.per == "constant" else self._weights(batch)

    def term(self, model: Decoder, batch: TrainBatch, output: Output) -> Term:
        at = batch.loss_mask.nonzero(as_tuple=True)
        drawn = DrawnTokens.of(batch, at, self)
        logits = self._logits(model, output.hidden[at], None if batch.kept is None else batch.kept[at])
        now = token_logprobs(logits, batch.targets[at])
        ratio = self._ratio(now, drawn)
        gain, bound = self._gain(now, ratio, drawn)
        n = float(len(now))
        means: dict[str, tuple[float, float]] = {}
        if drawn.tis is not None:
            gain = gain * drawn.tis.clamp(max=self.tis_cap)
            means["tis_capped"] = (float((drawn.tis > self.tis_cap).sum()), n)
        if self.off_policy_delta:
            masked = (drawn.advantage < 0) & (drawn.mean(drawn.sampled - now.detach()) > self.off_policy_delta)
            gain = gain.masked_fill(masked, 0.0)
            means["off_policy_masked"] = (float(masked.sum()), n)
        total = -(gain * drawn.weight).sum()
        if drawn.reference is not None:
            kl = reverse_kl(now, drawn.reference)
            if self.kl == "unbiased":
                kl = kl * (now - drawn.sampled).exp()
            total = total + self.beta * (kl * drawn.weight).sum()
            means["kl"] = (float(kl.detach().sum()), n)
        with torch.no_grad():
            p = logits.softmax(-1)
            entropy = -(p * p.clamp_min(1e-30).log()).sum()
        compared = sampler_difference(now, batch, at)
        means |= compared.means | {
            "entropy": (float(entropy), n),
            "clipped": (float(bound.sum()), n),
        }
        logprobs = None
        if self.wants_old:
            logprobs = torch.zeros_like(batch.loss_mask).index_put(at, now.detach())
        return Term(total, means, compared.maxima, logprobs=logprobs)

    def _logits(self, model: Decoder, hidden: Tensor, kept: Tensor | None) -> Tensor:
        """Return logits of the sampled distribution; on a backend with the engine's arithmetic, by the engine's own steps."""
        if not model.ops.in_blocks:
            logits = model.logits(hidden) / self.temperature
            return logits if kept is None else keep_only(logits, kept)
        n = len(hidden)
        rows = F.pad(hidden, (0, 0, 0, max(0, ENOUGH.least - n)))
        logits = model.logits(rows)[:n]
        logits = logits / self.temperature
        return logits if kept is None else keep_only(logits.log_softmax(-1), kept)

    def _ratio(self, now: Tensor, drawn: DrawnTokens) -> Tensor:
        """Return p / p_old per token, or per answer as the exp of the mean over its tokens (GSPO, eq. 7)."""
        if self.importance_sampling_level == "token":
            return (now - drawn.old).exp()
        whole = drawn.mean(now - drawn.old).exp()
        if self.importance_sampling_level == "sequence":
            return whole
        return whole.detach() * (now - now.detach()).exp()

    def _gain(self, now: Tensor, ratio: Tensor, drawn: DrawnTokens) -> tuple[Tensor, Tensor]:
        """Return each token's term of the objective, and a mask of the tokens that the clip changed."""
        advantage = drawn.advantage
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        if self.loss_type == "cispo":
            return clipped.detach() * advantage * now, clipped.detach() != ratio.detach()
        gain = torch.minimum(ratio * advantage, clipped * advantage)
        return gain, (ratio * advantage > clipped * advantage).detach()


@dataclass(frozen=True)
class DrawnTokens:
    """The n trained tokens of a batch, in mask order. Every field is [n] except `counts`; `answer` is each token's answer index."""

    advantage: Tensor
    weight: Tensor
    sampled: Tensor
    old: Tensor
    tis: Tensor | None
    reference: Tensor | None
    answer: Tensor
    counts: Tensor  # [answers], number of tokens of each answer

    @classmethod
    def of(cls, batch: TrainBatch, at: tuple[Tensor, ...], how: GRPO) -> DrawnTokens:
        if batch.advantages is None or batch.sampled_logprobs is None:
            raise NumericsError("grpo needs advantages and the sampler's log-probabilities", where="objectives.grpo")
        sampled = batch.sampled_logprobs[at]
        # Both are absent in the comparison of trainer and sampler, which runs earlier and without gradients.
        old = _there(batch.old_logprobs, how.wants_old, "the trainer's log-probabilities before the update", at)
        reference = _there(batch.reference_logprobs, how.beta > 0, "a reference's log-probabilities", at)
        named = at[0] * (batch.segments.shape[1] + 1) + batch.segments[at]  # documents never cross rows
        _, answer, counts = named.unique(return_inverse=True, return_counts=True)
        return cls(
            advantage=batch.advantages[at],
            weight=how.shares(batch)[at],
            sampled=sampled,
            old=sampled if old is None else old,
            tis=None if old is None else (old - sampled).exp(),
            reference=reference,
            answer=answer,
            counts=counts,
        )

    def mean(self, values: Tensor) -> Tensor:
        """Return for each token the mean over the tokens of its answer: values [n] -> [n]."""
        sums = values.new_zeros(len(self.counts)).index_add(0, self.answer, values)
        return (sums / self.counts)[self.answer]


def _there(values: Tensor | None, wanted: bool, what: str, at: tuple[Tensor, ...]) -> Tensor | None:
    if wanted and values is None and torch.is_grad_enabled():
        raise NumericsError(f"grpo needs {what}, but the batch has none", where="objectives.grpo")
    return values[at] if wanted and values is not None else None
