"""The objective of reinforcement against R1's equations, written slowly a second time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from little import loud, rollouts, sampled, tiny, update_of

from rorqual.tasks.task import Verdict
from rorqual.train.objectives import GRPO
from rorqual.train.sources.sampler import Scored


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
    found = {tuple(batch.tokens[batch.documents == number].tolist()) for number in batch.documents.unique().tolist()}
    assert {(*s.completion.prompt_ids, *s.completion.token_ids) for s in scored} <= found


def test_sampler_and_trainer_agree_and_flips_are_counted() -> None:
    for temperature in (1.0, 0.6):
        model = loud(tiny())
        update = update_of(model, (GRPO(temperature=temperature),), rollouts(sampled(model, temperature=temperature)))
        total, tokens = update.means["logprob_diff"]
        assert total / tokens <= 1e-6 and update.maxima["logprob_diff"] <= 1e-4
        assert update.maxima["routing_gap"] <= 1e-6
        assert update.means["routing_flips"][0] == 0
