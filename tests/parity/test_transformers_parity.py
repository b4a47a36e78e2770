"""Logits and every gradient equal transformers' DeepseekV3ForCausalLM and Qwen3ForCausalLM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_models import changed, deepseek_config, inputs, loud, qwen3_config
from theirs import fused, relative
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rorqual.model import Decoder, ModelConfig
from rorqual.model.load import deepseek_v3, qwen3
from rorqual.ops.backends import REFERENCE, TORCH

TOLERANCE = 1e-4
DEEPSEEK_SEEDS, QWEN_SEEDS = range(20), range(6)


def their_deepseek(model: Decoder) -> DeepseekV3ForCausalLM:
    config = DeepseekV3Config(**deepseek_v3.config_to_hf(model.config), attn_implementation="eager")
    return filled(DeepseekV3ForCausalLM(config), deepseek_v3.to_hf(model.state_dict(), model.config))


def their_qwen3(model: Decoder) -> Qwen3ForCausalLM:
    config = Qwen3Config(**qwen3.config_to_hf(model.config), attn_implementation="eager")
    return filled(Qwen3ForCausalLM(config), qwen3.to_hf(model.state_dict(), model.config))


def filled(theirs: Any, hub: dict[str, Tensor]) -> Any:
    theirs.load_state_dict(fused(hub), strict=True)
    return theirs.float().train()


def their_gradients(theirs: Any, ours: Decoder) -> dict[str, Tensor]:
    """By our names: the same renaming as of the weights, on tensors that hold gradients."""
    names = {
        ".self_attn.": ".attention.",
        ".mlp.gate.weight": ".ffn.router.gate",
        ".mlp.": ".ffn.",
        "model.": "",
    }
    out = {}
    for name, parameter in theirs.named_parameters():
        for old, new in names.items():
            name = name.replace(old, new)
        out[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    assert set(out) == {name for name, _ in ours.named_parameters()}
    return out


def compare(ours: Decoder, theirs: Any, seed: int) -> None:
    tokens, positions = inputs(ours.config, seed)
    output = ours(tokens, positions)
    logits = ours.logits(output.hidden)
    reply = theirs(tokens, position_ids=positions, output_attentions=True, use_cache=False)
    assert 0.8 < float(reply.logits.detach().std()) < 1.25
    # Peaked: where a query may look at 8 keys or more, the best one has about half the weight, not an eighth.
    assert float(torch.stack(reply.attentions).detach()[:, :, :, 8:].amax(-1).mean()) > 0.45
    assert relative(logits, reply.logits) < TOLERANCE

    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
    (logits * weights).sum().backward()
    (reply.logits * weights).sum().backward()
    expected = their_gradients(theirs, ours)
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert float(expected[name].abs().max()) > 1e-3, f"{name}: no gradient to compare"
        assert relative(parameter.grad, expected[name]) < TOLERANCE, name
    unused_experts_only(ours, output)


def unused_experts_only(ours: Decoder, output: Any) -> None:
    """The only slices of a gradient that may be zero are those of experts that no token chose."""
    for layer, routing in zip(ours.routers(), output.routing):
        assert layer.experts.down_proj.grad is not None
        reached = layer.experts.down_proj.grad.abs().amax((1, 2)) > 0
        used = torch.zeros_like(reached)
        used[routing.indices.unique()] = True
        assert torch.equal(reached, used)


@pytest.mark.parametrize("seed", DEEPSEEK_SEEDS)
def test_deepseek_v3_logits_and_gradients(seed: int) -> None:
    ops = (REFERENCE, TORCH)[seed // 2 % 2]
    ours = loud(deepseek_config(seed), seed, ops=ops, biased_below_zero=seed % 5 == 2)
    compare(ours, their_deepseek(ours), seed)


@pytest.mark.parametrize("seed", QWEN_SEEDS)
def test_qwen3_logits_and_gradients(seed: int) -> None:
    ours = loud(qwen3_config(seed), seed, ops=(REFERENCE, TORCH)[seed % 2])
    compare(ours, their_qwen3(ours), seed)


def without_mscale(config: ModelConfig) -> ModelConfig:
    rope = config.stages[0].attention.rope  # type: ignore[attr-defined]
    yarn = rope.yarn.model_copy(update={"mscale": 0.0, "mscale_all_dim": 1e-9})
    return changed(config, "attention", rope=rope.model_copy(update={"yarn": yarn}))


def without_yarn(config: ModelConfig) -> ModelConfig:
    rope = config.stages[0].attention.rope  # type: ignore[attr-defined]
    return changed(config, "attention", rope=rope.model_copy(update={"yarn": None}))


MISTAKES: dict[str, Callable[[ModelConfig], ModelConfig]] = {
    "mscale missing from the softmax scale": without_mscale,
    "no YaRN": without_yarn,
    "groups ignored": lambda c: changed(c, "router", n_group=1, topk_group=1),
    "group score by its best expert": lambda c: changed(c, "router", group_score="max"),
    "softmax scores": lambda c: changed(c, "router", scoring_func="softmax"),
    "gates not normalised": lambda c: changed(c, "router", norm_topk_prob=False),
    "gates not scaled": lambda c: changed(c, "router", routed_scaling_factor=1.0),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_moves_logits_a_hundred_times_the_tolerance(mistake: str) -> None:
    config = changed(
        deepseek_config(5),
        "router",
        n_routed_experts=16,
        n_group=4,
        topk_group=2,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
    )
    right = loud(config, 5)
    wrong = Decoder(MISTAKES[mistake](config), REFERENCE)
    wrong.load_state_dict(right.state_dict())
    tokens, positions = inputs(config, 5)
    with torch.no_grad():
        good, bad = (model.logits(model(tokens, positions).hidden) for model in (right, wrong))
    assert relative(bad, good) > 100 * TOLERANCE
