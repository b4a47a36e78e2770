"""Each family's models equal transformers' in logits and every gradient, beyond the original context too, by the names and the config.json
that we write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_models import (
    changed,
    deepseek_config,
    deepseek_v2_config,
    deepseek_v32_config,
    inputs,
    llama_config,
    loud,
    qwen2_config,
    qwen3_config,
    qwen3_moe_config,
)
from theirs import relative, their_model
from torch import Tensor

from rorqual.model import Decoder, ModelConfig
from rorqual.ops.backends import REFERENCE, TORCH

TOLERANCE = 1e-4
FAMILIES: dict[str, Callable[[int], ModelConfig]] = {
    "deepseek_v2": deepseek_v2_config,
    "deepseek_v3": deepseek_config,
    "deepseek_v32": deepseek_v32_config,
    "llama": llama_config,
    "qwen2": qwen2_config,
    "qwen3": qwen3_config,
    "qwen3_moe": qwen3_moe_config,
}


def their_gradients(theirs: Any) -> dict[str, Tensor]:
    """By our names: the same renaming as of the weights, on tensors that hold gradients."""
    names = {".self_attn.": ".attention.", ".mlp.gate.weight": ".ffn.router.gate", ".mlp.": ".ffn.", "model.": ""}
    out = {}
    for name, parameter in theirs.named_parameters():
        for old, new in names.items():
            name = name.replace(old, new)
        out[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return out


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_transformers(name: str, seed: int) -> None:
    """And all gradients, in which only experts that no token chose, and a choice, have none."""
    config = FAMILIES[name](seed)
    below_zero = name == "deepseek_v3" and seed % 5 == 2
    ours = loud(config, seed, ops=(REFERENCE, TORCH)[seed // 2 % 2], biased_below_zero=below_zero)
    family, theirs = their_model(ours)
    assert theirs.config.model_type == name
    tokens, positions = inputs(config, seed)
    reply = theirs(tokens, position_ids=positions, output_attentions=True, use_cache=False)
    assert 0.8 < float(reply.logits.detach().std()) < 1.25
    # Peaked: where a query may look at 8 keys or more, the best one has a large share, not an eighth.
    assert float(torch.stack(reply.attentions).detach()[:, :, :, 8:].amax(-1).mean()) > 0.45
    output = ours(tokens, positions)
    logits = ours.logits(output.hidden)
    assert relative(logits, reply.logits) < TOLERANCE
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
    (logits * weights).sum().backward()
    (reply.logits * weights).sum().backward()
    expected = their_gradients(theirs)
    assert set(expected) == {parameter for parameter, _ in ours.named_parameters()}
    for parameter, tensor in ours.named_parameters():
        if ".indexer." in parameter:
            assert tensor.grad is None and not expected[parameter].any(), parameter
            continue
        assert tensor.grad is not None and float(expected[parameter].abs().max()) > 1e-3, parameter
        assert relative(tensor.grad, expected[parameter]) < TOLERANCE, parameter
    for layer, routing in zip(ours.routing_ffns(), output.routing):
        reached = layer.experts.down_proj.grad.abs().amax((1, 2)) > 0
        assert set(reached.nonzero().flatten().tolist()) == set(routing.indices.flatten().tolist())
    # What transformers would save is the same model, and so is what we wrote.
    assert family.config_from_hf(theirs.config.to_dict(), "theirs") == config
    assert family.config_from_hf(family.config_to_hf(config), "ours") == config


def rope_changed(config: ModelConfig, **fields: Any) -> ModelConfig:
    rope = config.stages[0].attention.rope  # type: ignore[attr-defined]
    return changed(config, "attention", rope=rope.model_copy(update=fields))


def without_factor(config: ModelConfig) -> ModelConfig:
    yarn = config.stages[0].attention.rope.yarn  # type: ignore[attr-defined]
    return rope_changed(config, yarn=yarn.model_copy(update={"attention_factor": 0.0}))


def without_stretch(config: ModelConfig) -> ModelConfig:
    scaling = config.stages[0].attention.rope.llama3  # type: ignore[attr-defined]
    return rope_changed(config, llama3=scaling.model_copy(update={"high_freq_factor": 1.001}))


def without_mscale(config: ModelConfig) -> ModelConfig:
    yarn = config.stages[0].attention.rope.yarn  # type: ignore[attr-defined]
    return rope_changed(config, yarn=yarn.model_copy(update={"mscale": 0.0, "mscale_all_dim": 1e-9}))


ROUTER = {"n_routed_experts": 16, "n_group": 4, "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5}
GROUPS = changed(deepseek_config(5), "router", **ROUTER)
MISTAKES: dict[str, tuple[ModelConfig, Callable[[ModelConfig], ModelConfig]]] = {
    "llama3 scaling ignored": (llama_config(1), lambda c: rope_changed(c, llama3=None)),
    "llama3 without the mixed band": (llama_config(1), without_stretch),
    "linear scaling ignored": (llama_config(2), lambda c: rope_changed(c, linear=1.0)),
    "attention_factor ignored": (qwen2_config(1), without_factor),
    "YaRN ignored": (qwen2_config(0), lambda c: rope_changed(c, yarn=None)),
    "gates not normalised": (qwen3_moe_config(0), lambda c: changed(c, "router", norm_topk_prob=False)),
    "V2's scale ignored": (deepseek_v2_config(1), lambda c: changed(c, "router", routed_scaling_factor=1.0)),
    "mscale missing from the softmax scale": (GROUPS, without_mscale),
    "no YaRN": (GROUPS, lambda c: rope_changed(c, yarn=None)),
    "groups ignored": (GROUPS, lambda c: changed(c, "router", n_group=1, topk_group=1)),
    "group score by its best expert": (GROUPS, lambda c: changed(c, "router", group_score="max")),
    "softmax scores": (GROUPS, lambda c: changed(c, "router", scoring_func="softmax")),
    "V3's gates not normalised": (GROUPS, lambda c: changed(c, "router", norm_topk_prob=False)),
    "V3's gates not scaled": (GROUPS, lambda c: changed(c, "router", routed_scaling_factor=1.0)),
    "V2's groups ignored": (deepseek_v2_config(1), lambda c: changed(c, "router", n_group=1, topk_group=1)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@torch.no_grad()
def test_a_mistake_moves_logits_a_hundred_times_the_tolerance(mistake: str) -> None:
    config, change = MISTAKES[mistake]
    right = loud(config, 5)
    wrong = Decoder(change(config), REFERENCE)
    wrong.load_state_dict(right.state_dict())
    tokens, positions = inputs(config, 5)
    good, bad = (model.logits(model(tokens, positions).hidden) for model in (right, wrong))
    assert relative(bad, good) > 100 * TOLERANCE
