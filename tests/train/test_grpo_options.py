"""Variants of GRPO in the objective: each against its paper's formula, written slowly a second time, token by token."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from little import loud, relative, rollouts, same_gradient, sampled, tiny, update_of
from pydantic import ValidationError
from torch import Tensor

from rorqual.core.errors import NumericsError
from rorqual.model import Decoder
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives import GRPO
from rorqual.train.sources.sampler import Scored

KEYS = ("sampled", "old", "reference")
Numbers = list[dict[str, list[float]]]

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sequence": {"per": "sequence"},
    "cold": {"temperature": 0.7},
    "dr_grpo": {"per": "constant", "max_tokens": 20},
    "gspo": {"per": "sequence", "importance_sampling_level": "sequence", "clip_low": 0.04, "clip_high": 0.05},
    "gspo_token": {"importance_sampling_level": "sequence_token", "clip_low": 0.04, "clip_high": 0.05},
    "cispo": {"loss_type": "cispo", "clip_low": 1.0, "clip_high": 0.1},
    "cispo_below_too": {"loss_type": "cispo", "clip_low": 0.1, "clip_high": 0.1},
    "tis": {"tis_cap": 1.1},
    "kl": {"beta": 0.5, "per": "sequence"},
    "kl_unbiased": {"beta": 0.5, "kl": "unbiased"},
    "off_policy": {"off_policy_delta": 0.02},
    "v32": {"beta": 0.5, "kl": "unbiased", "off_policy_delta": 0.02, "per": "sequence", "clip_high": 0.2},
    "all": {"importance_sampling_level": "sequence", "tis_cap": 1.1, "beta": 0.5, "off_policy_delta": 0.02},
}


def moved(scored: list[Scored]) -> Numbers:
    """For each answer the sampler's, the old trainer's and a reference's log-probabilities, apart from each other."""
    generator = torch.Generator().manual_seed(3)

    def near(values: list[float], spread: float, shift: float) -> list[float]:
        noise = torch.randn(len(values), generator=generator) * spread + shift
        return (torch.tensor(values) + noise).tolist()

    shifts = [-0.08, 0.1, 0.06, -0.05, 0.03, 0.15]
    out = []
    for one, shift in zip(scored, shifts, strict=True):
        old = near(one.completion.logprobs, 0.15, shift)
        out.append({"sampled": near(old, 0.15, 0.0), "old": old, "reference": near(one.completion.logprobs, 0.4, 0.0)})
    return out


def batch_of(scored: list[Scored], numbers: Numbers, *, pad: bool = False) -> TrainBatch:
    """The samples as if a sampler, an old trainer and a reference had had these log-probabilities."""
    fields = {}
    for key in KEYS:
        those = [replace(s, completion=replace(s.completion, logprobs=n[key])) for s, n in zip(scored, numbers)]
        fields[f"{key}_logprobs"] = rollouts(those, pad=pad).sampled_logprobs
    return replace(rollouts(scored, pad=pad), **fields)


def slow(model: Decoder, scored: list[Scored], numbers: Numbers, o: GRPO) -> Tensor:
    """Every paper's formula, in double precision, one token after the other."""
    sums: list[Tensor] = []
    for one, given in zip(scored, numbers):
        now = logprobs_of(model, one, o.temperature)
        old = given["old"] if o.tis_cap else given["sampled"]
        n, a = len(now), one.advantage
        mean_ratio = torch.exp(sum(now[t] - old[t] for t in range(n)) / n)
        drift = sum(given["sampled"][t] - float(now[t].detach()) for t in range(n)) / n
        dropped = o.off_policy_delta > 0 and a < 0 and drift > o.off_policy_delta
        total = torch.zeros((), dtype=torch.float64)
        for t in range(n):
            if o.importance_sampling_level == "token":
                r = torch.exp(now[t] - old[t])
            elif o.importance_sampling_level == "sequence":
                r = mean_ratio
            else:
                r = mean_ratio.detach() * torch.exp(now[t]) / torch.exp(now[t]).detach()
            low, high = 1 - o.clip_low, 1 + o.clip_high
            if o.loss_type == "cispo":
                gain = min(max(float(r.detach()), low), high) * a * now[t]
            elif (a > 0 and float(r.detach()) > high) or (a < 0 and float(r.detach()) < low):
                gain = torch.tensor((high if a > 0 else low) * a, dtype=torch.float64)
            else:
                gain = r * a
            if o.tis_cap:
                gain = gain * min(math.exp(old[t] - given["sampled"][t]), o.tis_cap)
            total = total - (0.0 if dropped else 1.0) * gain
            if o.beta:
                ref = given["reference"][t] - now[t]
                weight = torch.exp(now[t] - given["sampled"][t]) if o.kl == "unbiased" else 1.0
                total = total + o.beta * weight * (torch.exp(ref) - ref - 1)
        sums.append(total)
    lengths = [len(one.completion.token_ids) for one in scored]
    if o.per == "token":
        return sum(sums) / sum(lengths)
    divisors = [o.max_tokens if o.per == "constant" else n for n in lengths]
    return sum(s / d for s, d in zip(sums, divisors)) / len(sums)


def logprobs_of(model: Decoder, one: Scored, temperature: float) -> list[Tensor]:
    c = one.completion
    ids = [*c.prompt_ids, *c.token_ids]
    replay = torch.full((1, len(ids), 1, 2), -1)
    replay[0, :-1] = torch.as_tensor(c.experts).long()
    logits = model.logits(model(torch.tensor([ids]), replay=replay).hidden[0]).double() / temperature
    rows = [logits[len(c.prompt_ids) - 1 + t] for t in range(len(c.token_ids))]
    return [row[token] - torch.logsumexp(row, -1) for row, token in zip(rows, c.token_ids)]


@pytest.mark.parametrize("name", OPTIONS)
def test_against_a_slow_reference(name: str) -> None:
    """However its answers are laid out and divided, it has the gradient of the paper's formula, and not the plain one."""
    model = loud(tiny())
    scored = sampled(model)
    numbers, objective = moved(scored), GRPO(**OPTIONS[name])
    update = update_of(model, (objective,), batch_of(scored, numbers), parts=2)
    for pad, parts in ((True, 1), (True, 4), (False, 1)):
        other = update_of(model, (objective,), batch_of(scored, numbers, pad=pad), parts=parts)
        same_gradient(model, update, other)
        assert other.loss == pytest.approx(update.loss, rel=1e-5)
    plain = update_of(model, (GRPO(),), batch_of(scored, numbers))
    differs = any(relative(a, b) > 1e-2 for a, b in zip(plain.grads, update.grads) if a.any())
    assert differs == (name not in ("plain", "sequence")), "these answers are of one length"
    wanted = slow(model, scored, numbers, objective)
    assert update.loss == pytest.approx(float(wanted.detach()), rel=1e-5, abs=1e-6)
    expected = torch.autograd.grad(wanted, list(model.parameters()), allow_unused=True)
    for grad, other in zip(update.grads, expected, strict=True):
        assert relative(torch.zeros_like(grad) if other is None else other, grad) <= 1e-4


@pytest.mark.parametrize(("advantage", "drift", "trains"), [
    (-1.0, 0.3, False), (-1.0, 0.1, True), (1.0, 0.3, True), (-1.0, -0.3, True),
])  # fmt: skip
def test_the_off_policy_mask_drops_only_bad_answers_that_the_model_has_left(
    advantage: float, drift: float, trains: bool
) -> None:
    """Bad, and less likely than when it was drawn by more than delta: it does not train. The clip is out of the way."""
    model = loud(tiny())
    one = sampled(model)[0]
    logprobs = [lp + drift for lp in one.completion.logprobs]
    given = replace(one, advantage=advantage, completion=replace(one.completion, logprobs=logprobs))
    update = update_of(model, (GRPO(off_policy_delta=0.2, clip_low=0.9, clip_high=9.0),), rollouts([given]))
    assert any(bool(g.any()) for g in update.grads) == trains
    masked, tokens = update.means["off_policy_masked"]
    assert masked == (0 if trains else tokens)


def test_what_is_missing_is_named() -> None:
    model = loud(tiny())
    batch = rollouts(sampled(model))
    with pytest.raises(NumericsError, match="the sampler's log-probabilities"):
        update_of(model, (GRPO(),), replace(batch, sampled_logprobs=None))
    with pytest.raises(NumericsError, match="before the update"):
        update_of(model, (GRPO(tis_cap=2.0),), batch)
    with pytest.raises(NumericsError, match="reference"):
        update_of(model, (GRPO(beta=0.1),), batch)
    with pytest.raises(ValidationError, match="set max_tokens"):
        GRPO(per="constant")
