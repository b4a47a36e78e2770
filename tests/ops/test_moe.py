"""The router's laws: groups, replay, and the gap that tells a near tie from a bug."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rorqual.ops.moe import choose, route, router_logits


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(
    seed=st.integers(0, 10_000),
    shape=st.sampled_from([(1, 1, 3), (2, 1, 2), (4, 2, 4), (4, 4, 3), (4, 1, 1)]),
    shift=st.sampled_from([-5.0, 0.0, 5.0]),
    group_by=st.sampled_from(["top2", "max"]),
)
@settings(max_examples=60, deadline=None)
def test_chosen_experts_are_the_best_of_the_best_groups(
    seed: int, shape: tuple[int, int, int], shift: float, group_by: str
) -> None:
    n_group, kept, k = shape
    biased = normal(5, 16, seed=seed) + shift
    chosen = choose(biased, k=k, n_group=n_group, topk_group=kept, group_by=group_by)  # type: ignore[arg-type]
    size = 16 // n_group
    for row, experts in zip(biased.tolist(), chosen.tolist()):
        assert len(set(experts)) == k
        groups = [sorted(row[g * size : (g + 1) * size], reverse=True) for g in range(n_group)]
        merit = [sum(values[:2]) if group_by == "top2" else values[0] for values in groups]
        best = set(sorted(range(n_group), key=lambda g: -merit[g])[:kept])
        assert {e // size for e in experts} <= best
        allowed = sorted((row[e] for e in range(16) if e // size in best), reverse=True)
        assert sorted((row[e] for e in experts), reverse=True) == allowed[:k]


def test_bias_chooses_but_does_not_weigh() -> None:
    logits = normal(20, 8)
    bias = torch.zeros(8)
    bias[3] = 10.0
    routing = route(logits, bias, k=2, norm=False)
    assert (routing.indices == 3).any(-1).all()
    torch.testing.assert_close(routing.weights, logits.sigmoid().gather(-1, routing.indices))


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
@pytest.mark.parametrize("norm", [True, False])
def test_replay_keeps_the_routers_gradient(score: str, norm: bool) -> None:
    """Gates recomputed under replay, not taken from zeroed probabilities: every replayed expert's row gets a gradient."""
    logits = normal(30, 8).requires_grad_()
    replay = (torch.arange(30).unsqueeze(-1) + torch.tensor([0, 3])) % 8
    routing = route(logits, torch.zeros(8), k=2, score=score, norm=norm, replay=replay)  # type: ignore[arg-type]
    assert torch.equal(routing.indices, replay)
    (routing.weights * normal(30, 2, seed=1)).sum().backward()
    assert logits.grad is not None
    assert (logits.grad.gather(-1, replay).abs() > 1e-6).all()


def test_gap_is_the_score_that_the_replayed_choice_gives_away() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    s = logits.sigmoid()[0]
    routing = route(logits, torch.zeros(4), k=2, replay=torch.tensor([[0, 2]]))
    torch.testing.assert_close(routing.gap, (s[1] - s[2]).unsqueeze(0))


def test_gap_with_groups_sees_a_near_tie_of_groups_as_small_and_a_wrong_group_as_large() -> None:
    def gap(scores: list[float], replay: list[int]) -> float:
        logits = torch.tensor([scores]).logit()
        routing = route(logits, torch.zeros(len(scores)), k=1, n_group=2, topk_group=1, replay=torch.tensor([replay]))
        return float(routing.gap)

    # Groups (0, 1) and (2, 3) tie but for 1e-5; their best experts do not.
    assert gap([0.50001, 0.5, 0.9, 0.1], [2]) == pytest.approx(1e-5, abs=1e-6)
    # Expert 2 is better than expert 0, but its group is far worse: without the groups the gap would be negative.
    assert gap([0.6, 0.6, 0.65, 0.05], [2]) == pytest.approx(0.5, abs=1e-5)
    assert gap([0.6, 0.6, 0.65, 0.05], [0]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_router_logits_are_fp32_whatever_comes_in(dtype: torch.dtype, autocast: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, gate = (torch.randn(shape, generator=generator).to(dtype) for shape in ((40, 64), (8, 64)))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = router_logits(x, gate)
    assert found.dtype == torch.float32
    assert float((found - x.double() @ gate.double().T).abs().max()) < 1e-5
