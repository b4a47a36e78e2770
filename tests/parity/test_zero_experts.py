"""The router `zero` and its mixture equal those of transformers' LongCat-Flash: outputs, choices and all gradients."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.longcat_flash.configuration_longcat_flash import LongcatFlashConfig
from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashMoE

from rorqual.model.ffn import MoEConfig
from rorqual.model.ffn.router import ZeroExpertsConfig
from rorqual.ops.backends import REFERENCE, TORCH, TORCH_INVARIANT, Backend

TOKENS = 64


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def random_config(seed: int) -> tuple[int, MoEConfig]:
    rng = random.Random(seed)
    experts, zero = rng.randint(3, 9), rng.randint(1, 6)
    k = rng.randint(2, min(5, experts))
    router = ZeroExpertsConfig(
        n_routed_experts=experts,
        zero_expert_num=zero,
        num_experts_per_tok=k,
        expected_experts=k - 0.5 * min(zero, k - 1),
        routed_scaling_factor=rng.choice([1.0, 2.5, 6.0]),
    )
    router.check()
    return rng.choice([8, 24, 40]), MoEConfig(router=router, moe_intermediate_size=rng.choice([8, 12, 20]))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"num_experts_per_tok": 8}, "num_experts_per_tok must be at most n_routed_experts \\+ zero_expert_num"),
        ({"expected_experts": 3.0}, "expected_experts must be less than num_experts_per_tok"),
        ({"expected_experts": 2.0, "n_routed_experts": 2}, ""),
        ({"expected_experts": 2.5, "n_routed_experts": 2}, "expected_experts must be at most n_routed_experts"),
        ({"zero_expert_num": 1}, ""),
        ({"zero_expert_num": 1, "expected_experts": 1.9}, "num_experts_per_tok - expected_experts must be at most zero_expert_num"),
        ({"num_experts_per_tok": 7, "expected_experts": 4.0}, ""),
    ],
)  # fmt: skip
def test_contradictions_are_refused_beside_their_nearest_valid_twins(change: dict[str, Any], what: str) -> None:
    good = {"n_routed_experts": 4, "zero_expert_num": 3, "num_experts_per_tok": 3, "expected_experts": 2.0}
    config = ZeroExpertsConfig(**good | change)
    if what:
        with pytest.raises(ValueError, match=what):
            config.check()
    else:
        config.check()


@pytest.mark.parametrize("ops", [REFERENCE, TORCH, TORCH_INVARIANT], ids=lambda ops: ops.name)
@pytest.mark.parametrize("seed", range(10))
def test_the_mixture_is_longcats(seed: int, ops: Backend) -> None:
    hidden, config = random_config(seed)
    router = config.router
    assert isinstance(router, ZeroExpertsConfig)
    theirs = LongcatFlashMoE(
        LongcatFlashConfig(
            hidden_size=hidden,
            n_routed_experts=router.n_routed_experts,
            zero_expert_num=router.zero_expert_num,
            moe_topk=router.num_experts_per_tok,
            expert_ffn_hidden_size=config.moe_intermediate_size,
            routed_scaling_factor=router.routed_scaling_factor,
        )
    )
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*theirs.named_parameters(), *theirs.named_buffers()):
            scale = 0.02 if name.endswith("bias") else 1.0
            tensor.copy_(scale * torch.randn(tensor.shape, generator=draw))
    ours = config.build(hidden)
    n = router.n_routed_experts
    their_parts = {
        "router.gate": theirs.router.classifier.weight,
        "experts.gate_up_proj": theirs.experts.gate_up_proj,  # LongCat has rows for identity experts, too, and never reads them
        "experts.down_proj": theirs.experts.down_proj,
    }
    assert sorted([name for name, _ in ours.named_parameters()]) == sorted(their_parts)
    with torch.no_grad():
        for name, tensor in ours.named_parameters():
            part = their_parts[name]
            tensor.copy_(part[:n] if name.startswith("experts") else part)
        ours.router.e_score_correction_bias.copy_(theirs.router.e_score_correction_bias)
    x = torch.randn(TOKENS, hidden, generator=draw)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    y, routing = ours(inputs[0], ops, None)
    wanted = theirs(inputs[1][None])[0]
    assert routing is not None
    _, _, indices = theirs.router(inputs[1])
    assert torch.equal(routing.indices.sort(-1).values, indices.sort(-1).values)
    used = (routing.indices < n).sum(-1)
    assert used.min() < used.max(), "tokens use different numbers of experts with weights"
    assert relative(y, wanted) < 1e-5
    weight = torch.randn(y.shape, generator=draw)
    (y * weight).sum().backward()
    (wanted * weight).sum().backward()
    assert relative(inputs[0].grad, inputs[1].grad) < 1e-5  # type: ignore[arg-type]
    for name, tensor in ours.named_parameters():
        expected = their_parts[name].grad
        assert tensor.grad is not None and expected is not None
        assert relative(tensor.grad, expected[:n] if name.startswith("experts") else expected) < 1e-5, name
