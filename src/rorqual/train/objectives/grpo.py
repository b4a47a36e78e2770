"""Group relative policy optimization (DeepSeekMath, eq. 3; R1, eq. 1-3), with variants from later papers as options.

docs/how-to/grpo.md lists the options with their papers. By default, only two variants are used: DAPO's asymmetric clip range
and DAPO's mean over tokens.
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
from rorqual.model.decoder import Decoder, DecoderOutput
from rorqual.ops.losses import mask_tokens_not_kept, reverse_kl, token_logprobs
from rorqual.ops.row_limits import ENOUGH
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives.objective import LossTerm, Objective, sampler_difference


class GRPO(Objective):
    """The GRPO loss, -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A).

    r is the probability of a token under the trainer divided by its probability under the sampler. A is the advantage of the
    token's answer.

    `temperature` must equal the sampler's temperature, because r compares the trainer's distribution with the sampler's. If a
    batch has `kept` (the tokens that top-p and top-k allowed), the trainer's distribution is renormalized over these tokens
    (keep sampling mask, V3.2, 2512.02556).

    `per` sets how the loss is averaged:

    - 'token': the loss is averaged over all tokens (DAPO, 2503.14476).
    - 'sequence': the loss is averaged over the tokens of each answer, then over answers (R1).
    - 'constant': the loss is averaged over answers. An answer's loss is the sum over its tokens divided by `max_tokens`
      (Dr.GRPO, 2503.20783).

    `importance_sampling_level` sets the level at which r is computed:

    - 'token': r is computed per token.
    - 'sequence': r is the geometric mean over the tokens of an answer (GSPO, 2507.18071, eq. 5-7).
    - 'sequence_token': the value of 'sequence' with the gradient of each token's own probability (GSPO-token, eq. 13-14).

    `loss_type` is 'clip' (the loss above) or 'cispo' (CISPO, MiniMax-M1, 2506.13585, eq. 4-5). The 'cispo' loss is
    -clip(r) A log p, with no gradient through clip(r), so every token has a gradient. To remove the lower bound of the
    clip range, as the CISPO paper does, set `clip_low` to 1.

    `tis_cap` C is the cap of truncated importance sampling (Yao et al. 2025). C = 0 turns truncated importance sampling off.
    With C above 0, the denominator of r is p_old, the trainer's probability before the first update of the step. The loss is
    multiplied by min(p_old / p_sampler, C).

    `beta` is the weight of the KL divergence from the batch's `reference_logprobs`. `kl` is 'k3' (R1, eq. 2) or 'unbiased'
    (V3.2, section 3.1). 'unbiased' multiplies k3 by the ratio p / p_sampler. The gradient also flows through p / p_sampler.
    The KL term is neither clipped nor masked.

    `off_policy_delta` masks answers with a negative advantage that have become unlikely (V3.2, section 3.1). Let d be the mean
    over an answer's tokens of log p_sampler - log p, where p is the trainer's probability. If d exceeds `off_policy_delta` and
    the advantage is negative, the answer's tokens get no loss except the KL term. `off_policy_delta` 0 masks no answer.
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
    def _check_max_tokens(self) -> Self:
        if self.per == "constant" and not self.max_tokens:
            raise ValueError("per=constant divides by max_tokens; set max_tokens to the source's max_tokens")
        return self

    @property
    def needs_old_logprobs(self) -> bool:
        return self.tis_cap > 0

    def required_batch_fields(self) -> frozenset[str]:
        reference = {"reference_logprobs"} if self.beta else set()
        return frozenset({"advantages", "sampled_logprobs"} | reference)

    def weight(self, batch: TrainBatch) -> float:
        return float(self._denominator_weights(batch).sum())

    def _denominator_weights(self, batch: TrainBatch) -> Tensor:
        """Return each token's weight in the denominator of the mean loss: 1, or 1 divided by the number of trained tokens in
        the token's answer."""
        if self.per == "token" or batch.lengths is None:
            return batch.loss_mask
        return batch.loss_mask / batch.lengths.clamp_min(1)

    def numerator_weights(self, batch: TrainBatch) -> Tensor:
        """Return the weight of each token in the numerator of the mean loss."""
        return batch.loss_mask / self.max_tokens if self.per == "constant" else self._denominator_weights(batch)

    def term(self, model: Decoder, batch: TrainBatch, output: DecoderOutput) -> LossTerm:
        at = batch.loss_mask.nonzero(as_tuple=True)
        drawn = DrawnTokens.from_batch(batch, at, self)
        logits = self._logits(model, output.hidden[at], None if batch.kept is None else batch.kept[at])
        now = token_logprobs(logits, batch.targets[at])
        ratio = self._ratio(now, drawn)
        gain, bound = self._token_objective(now, ratio, drawn)
        n = float(len(now))
        means: dict[str, tuple[float, float]] = {}
        if drawn.tis is not None:
            gain = gain * drawn.tis.clamp(max=self.tis_cap)
            means["tis_capped"] = (float((drawn.tis > self.tis_cap).sum()), n)
        if self.off_policy_delta:
            masked = (drawn.advantage < 0) & (drawn.answer_mean(drawn.sampled - now.detach()) > self.off_policy_delta)
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
        if self.needs_old_logprobs:
            logprobs = torch.zeros_like(batch.loss_mask).index_put(at, now.detach())
        return LossTerm(total, means, compared.maxima, logprobs=logprobs)

    def _logits(self, model: Decoder, hidden: Tensor, kept: Tensor | None) -> Tensor:
        """Return the logits at the sampling temperature. If `kept` is given, mask all tokens that are not in `kept`.

        If the backend uses paged attention, the engine's operations are used, so that trainer and sampler round the
        same way.
        """
        if not model.ops.in_blocks:
            logits = model.logits(hidden) / self.temperature
            return logits if kept is None else mask_tokens_not_kept(logits, kept)
        n = len(hidden)
        rows = F.pad(hidden, (0, 0, 0, max(0, ENOUGH.least - n)))
        logits = model.logits(rows)[:n]
        logits = logits / self.temperature
        return logits if kept is None else mask_tokens_not_kept(logits.log_softmax(-1), kept)

    def _ratio(self, now: Tensor, drawn: DrawnTokens) -> Tensor:
        """Return the importance ratio of each token: p / p_old, or the geometric mean of p / p_old over the answer (GSPO, eq. 7)."""
        if self.importance_sampling_level == "token":
            return (now - drawn.old).exp()
        sequence_ratio = drawn.answer_mean(now - drawn.old).exp()
        if self.importance_sampling_level == "sequence":
            return sequence_ratio
        return sequence_ratio.detach() * (now - now.detach()).exp()

    def _token_objective(self, now: Tensor, ratio: Tensor, drawn: DrawnTokens) -> tuple[Tensor, Tensor]:
        """Return the objective of each token before weighting, and a mask of the tokens at which clipping changed the
        objective."""
        advantage = drawn.advantage
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        if self.loss_type == "cispo":
            return clipped.detach() * advantage * now, clipped.detach() != ratio.detach()
        gain = torch.minimum(ratio * advantage, clipped * advantage)
        return gain, (ratio * advantage > clipped * advantage).detach()


@dataclass(frozen=True)
class DrawnTokens:
    """The n trained tokens of a batch, in batch order. Every field except `counts` is [n]. `answer` is the index of a token's
    answer."""

    advantage: Tensor
    weight: Tensor
    sampled: Tensor
    old: Tensor
    tis: Tensor | None
    reference: Tensor | None
    answer: Tensor
    counts: Tensor  # [answers], the number of trained tokens of each answer

    @classmethod
    def from_batch(cls, batch: TrainBatch, at: tuple[Tensor, ...], objective: GRPO) -> DrawnTokens:
        if batch.advantages is None or batch.sampled_logprobs is None:
            raise NumericsError("grpo needs advantages and the sampler's log-probabilities", where="objectives.grpo")
        sampled = batch.sampled_logprobs[at]
        # A required field may be missing in the comparison of trainer and sampler, which precedes the updates and needs no
        # gradients.
        old = _require_tensor(
            batch.old_logprobs, objective.needs_old_logprobs, "the trainer's log-probabilities before the update", at
        )
        reference = _require_tensor(batch.reference_logprobs, objective.beta > 0, "a reference's log-probabilities", at)
        _, answer, counts = batch.document_indices[at].unique(return_inverse=True, return_counts=True)
        return cls(
            advantage=batch.advantages[at],
            weight=objective.numerator_weights(batch)[at],
            sampled=sampled,
            old=sampled if old is None else old,
            tis=None if old is None else (old - sampled).exp(),
            reference=reference,
            answer=answer,
            counts=counts,
        )

    def answer_mean(self, values: Tensor) -> Tensor:
        """Replace each value by the mean over the tokens of its answer: [n] -> [n]."""
        sums = values.new_zeros(len(self.counts)).index_add(0, self.answer, values)
        return (sums / self.counts)[self.answer]


def _require_tensor(values: Tensor | None, required: bool, what: str, at: tuple[Tensor, ...]) -> Tensor | None:
    if required and values is None and torch.is_grad_enabled():
        raise NumericsError(f"grpo needs {what}, but the batch has none", where="objectives.grpo")
    return values[at] if required and values is not None else None
