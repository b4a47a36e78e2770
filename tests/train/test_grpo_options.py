"""Variants of GRPO in the objective: each against its paper's formula, written slowly a second time, token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from little import loud, relative, rollouts, same_gradient, sampled, tiny, update_of
from pydantic import ValidationError

from rorqual.core.errors import NumericsError
from rorqual.train.objectives import GRPO


def test_gspo_for_tokens_is_gspo_where_the_tokens_of_an_answer_have_one_advantage() -> None:
    """GSPO, equations 13 and 14 (2507.18071)."""
    model = loud(tiny())
    batch = rollouts(sampled(model))
    assert batch.sampled_logprobs is not None
    noise = torch.randn(batch.tokens.shape, generator=torch.Generator().manual_seed(3))
    batch = replace(batch, sampled_logprobs=batch.sampled_logprobs + 0.1 * noise)
    one, other, plain = (
        update_of(model, (GRPO(importance_sampling_level=level, clip_low=0.04, clip_high=0.05),), batch, parts=2)  # type: ignore[arg-type]
        for level in ("sequence", "sequence_token", "token")
    )
    same_gradient(model, one, other)
    assert other.loss == pytest.approx(one.loss, rel=1e-5)
    assert any(relative(a, b) > 1e-2 for a, b in zip(one.grads, plain.grads) if a.any())


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
