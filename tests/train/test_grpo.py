"""The objective of reinforcement against R1's equations, written slowly a second time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from little import loud, relative, rollouts, sampled, tiny, update_of
from torch import Tensor

from rorqual.core.errors import NumericsError
from rorqual.model import Decoder
from rorqual.tasks.base import Verdict
from rorqual.train.objectives import GRPO
from rorqual.train.sources.rollouts import Scored


def slow_objective(model: Decoder, scored: list[Scored], objective: GRPO) -> Tensor:
    """R1 eq. 1 without its KL term, in double precision, an answer at a time: -J, with the routing of the sampler."""
    sums, lengths = [], []
    for one in scored:
        c = one.completion
        ids = [*c.prompt_ids, *c.token_ids]
        replay = torch.full((1, len(ids), 1, 2), -1)
        replay[0, :-1] = torch.as_tensor(c.experts).long()
        hidden = model(torch.tensor([ids]), replay=replay).hidden[0]
        logits = model.logits(hidden).double() / objective.temperature
        total: Tensor | float = 0.0
        for i, token in enumerate(c.token_ids):
            z = logits[len(c.prompt_ids) - 1 + i]
            logprob = z[token] - torch.log(torch.exp(z - z.max()).sum()) - z.max()
            ratio = torch.exp(logprob - c.logprobs[i])
            clipped = min(max(ratio, torch.tensor(1 - objective.clip_low)), torch.tensor(1 + objective.clip_high))
            gain = [ratio * one.advantage, clipped * one.advantage]
            total = total + (gain[0] if gain[0] <= gain[1] else gain[1])
        sums.append(total)
        lengths.append(len(c.token_ids))
    if objective.per == "token":
        return -sum(sums) / sum(lengths)
    return -sum(s / n for s, n in zip(sums, lengths)) / len(sums)


def off_policy(scored: list[Scored], spread: float) -> list[Scored]:
    """The same samples as if another policy had drawn them: ratios on both sides of 1."""
    generator = torch.Generator().manual_seed(0)
    out = []
    for one in scored:
        noise = torch.randn(len(one.completion.logprobs), generator=generator) * spread
        moved = [lp + float(n) for lp, n in zip(one.completion.logprobs, noise)]
        out.append(replace(one, completion=replace(one.completion, logprobs=moved)))
    return out


@pytest.mark.parametrize("per", ["token", "sequence"])
@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_against_a_slow_reference(temperature: float, spread: float, per: str) -> None:
    model = loud(tiny())
    objective = GRPO(per=per, temperature=temperature)
    scored = off_policy(sampled(model, temperature=temperature), spread)
    update = update_of(model, (objective,), rollouts(scored), parts=2)
    slow = slow_objective(model, scored, objective)
    assert update.loss == pytest.approx(float(slow.detach()), rel=1e-5, abs=1e-6)
    expected = torch.autograd.grad(slow, list(model.parameters()), allow_unused=True)
    for grad, wanted in zip(update.grads, expected, strict=True):
        assert relative(torch.zeros_like(grad) if wanted is None else wanted, grad) <= 1e-4
    clipped, tokens = update.means["clipped"]
    assert tokens == sum(len(s.completion.token_ids) for s in scored)
    assert (0 < clipped < tokens) if spread else clipped == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "flows"),
    [(1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False), (1.25, 1.0, True), (0.85, -1.0, True)],
)
def test_a_clipped_token_has_no_gradient_and_only_on_its_side(ratio: float, advantage: float, flows: bool) -> None:
    """1.25 lies below 1 + clip_high = 1.28: the clip is asymmetric (DAPO)."""
    model = loud(tiny())
    one = sampled(model)[0]
    moved = [lp - math.log(ratio) for lp in one.completion.logprobs]
    one = Scored(replace(one.completion, logprobs=moved), Verdict.RIGHT, advantage)
    update = update_of(model, (GRPO(),), rollouts([one]))
    assert any(bool(g.any()) for g in update.grads) == flows
    wanted = min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)
    assert update.loss == pytest.approx(-wanted, rel=1e-4)


def test_the_routers_gradient_lives_under_replay() -> None:
    model = loud(tiny())
    update = update_of(model, (GRPO(),), rollouts(sampled(model)))
    gates = {n: g for (n, _), g in zip(model.named_parameters(), update.grads) if n.endswith("ffn.router.gate")}
    assert bool(gates["layers.1.ffn.router.gate"].any())


def test_ids_and_probabilities_trained_on_are_those_that_were_sampled() -> None:
    model = loud(tiny())
    scored = sampled(model, temperature=0.8)
    batch = rollouts(scored)
    at = batch.loss_mask.nonzero(as_tuple=True)
    targets, logprobs = batch.targets[at].tolist(), batch.sampled_logprobs[at].tolist()
    every = [(t, lp) for s in scored for t, lp in zip(s.completion.token_ids, s.completion.logprobs)]
    assert sorted(zip(targets, logprobs)) == sorted((t, float(torch.tensor(lp))) for t, lp in every)
    for one, (row, start) in zip(scored, places(scored)):
        ids = [*one.completion.prompt_ids, *one.completion.token_ids]
        assert batch.tokens[row, start : start + len(ids)].tolist() == ids


def places(scored: list[Scored]) -> list[tuple[int, int]]:
    """Where the samples lie: found again by their ids, not by what the packer says."""
    batch, found = rollouts(scored), []
    for one in scored:
        ids = [*one.completion.prompt_ids, *one.completion.token_ids]
        hits = [
            (row, start)
            for row in range(len(batch.tokens))
            for start in range(batch.tokens.shape[1] - len(ids) + 1)
            if batch.tokens[row, start : start + len(ids)].tolist() == ids
        ]
        assert hits, "a sample is not in the batch as it was drawn"
        found.append(hits[0])
    return found


def test_sampler_and_trainer_agree_and_flips_are_counted() -> None:
    for temperature in (1.0, 0.6):
        model = loud(tiny())
        update = update_of(model, (GRPO(temperature=temperature),), rollouts(sampled(model, temperature=temperature)))
        total, tokens = update.means["logprob_diff"]
        assert total / tokens <= 1e-6 and update.maxima["logprob_diff"] <= 1e-4
        assert update.maxima["routing_gap"] <= 1e-6
        assert update.means["routing_flips"][0] == 0


def shifted(one: Scored) -> Scored:
    experts = torch.as_tensor(one.completion.experts)
    return replace(one, completion=replace(one.completion, experts=experts.roll(1, dims=0)))


def test_a_replay_that_is_one_token_off_is_seen() -> None:
    model = loud(tiny())
    update = update_of(model, (GRPO(),), rollouts([shifted(s) for s in sampled(model)]))
    assert update.maxima["routing_gap"] > 1e-3 and update.maxima["logprob_diff"] > 1e-3
    flips, tokens = update.means["routing_flips"]
    assert 0 < flips < tokens


def test_it_needs_the_samplers_probabilities() -> None:
    model = loud(tiny())
    batch = replace(rollouts(sampled(model)), sampled_logprobs=None)
    with pytest.raises(NumericsError, match="log-probabilities"):
        update_of(model, (GRPO(),), batch)
