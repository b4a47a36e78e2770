"""What stays fp32 in bf16: a model trained under autocast, and one whose weights are bf16. The truth is float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rorqual.model import Decoder, ModelConfig, Stage
from rorqual.model.adapter import LoRA
from rorqual.model.adapter.lora import LoRALinear
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.ffn.moe import MoE
from rorqual.ops.backends import REFERENCE, TORCH, TORCH_INVARIANT, Backend
from rorqual.ops.moe import Routing

HIDDEN, VOCAB, TOKENS = 32, 64, 1024
MLA = MLAConfig(
    num_attention_heads=2, q_lora_rank=16, kv_lora_rank=12, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16
)
GQA = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8, qk_norm=True)
ROUTERS = {
    "sigmoid": MoEConfig(n_routed_experts=16, num_experts_per_tok=2, moe_intermediate_size=16, n_shared_experts=1),
    "scaled": MoEConfig(
        n_routed_experts=16, num_experts_per_tok=2, moe_intermediate_size=16, routed_scaling_factor=2.5
    ),
    "groups by their best": MoEConfig(
        n_routed_experts=16, num_experts_per_tok=3, moe_intermediate_size=16, n_group=8, topk_group=3, group_score="max"
    ),
    "groups": MoEConfig(
        n_routed_experts=16, num_experts_per_tok=4, moe_intermediate_size=16, n_group=4, topk_group=2
    ),
    "softmax": MoEConfig(
        n_routed_experts=16, num_experts_per_tok=2, moe_intermediate_size=16, scoring_func="softmax",
        norm_topk_prob=False, score_bias=False,
    ),
}  # fmt: skip
every_router = pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS.keys())
every_backend = pytest.mark.parametrize("ops", [TORCH, REFERENCE, TORCH_INVARIANT], ids=lambda ops: ops.name)


@torch.no_grad()
def loud(
    router: MoEConfig, attention: MLAConfig | GQAConfig = MLA, *, modules: int = 1, ops: Backend = TORCH
) -> Decoder:
    """A dense layer, a layer of experts and a prediction module, with logits of a router that have a spread of 1."""
    config = ModelConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        stages=(
            Stage(layers=1, attention=attention, ffn=DenseConfig(intermediate_size=2 * HIDDEN)),
            Stage(layers=1, attention=attention, ffn=router),
        ),
        num_nextn_predict_layers=modules,
    )
    generator = torch.Generator().manual_seed(1)
    model = Decoder(config, ops)
    for _, tensor in sorted(model.state_dict().items()):
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.copy_(noise / math.sqrt(tensor.shape[-1]) if tensor.dim() > 1 else 1 + 0.2 * noise)
    for layer in model.routing_ffns():
        if router.router.score_bias:
            layer.router.e_score_correction_bias.normal_(std=0.05, generator=generator)
    return model


def some_tokens(rows: int = 16) -> Tensor:
    return torch.randint(VOCAB, (rows, TOKENS // rows), generator=torch.Generator().manual_seed(2))


def watched(model: Decoder) -> list[Tensor]:
    """What each router reads, in the order in which they run."""
    read: list[Tensor] = []
    for layer in model.routing_ffns():
        layer.register_forward_pre_hook(lambda _, given: read.append(given[0].detach()))
    return read


def exact(layer: MoE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Affinities and chosen experts (ascending) of x, in double precision of what was read."""
    router, c = layer.router, layer.router.config
    logits = x.double() @ router.gate.detach().double().T
    scores = logits.sigmoid() if c.scoring_func == "sigmoid" else logits.softmax(-1)
    biased = scores + (router.e_score_correction_bias.double() if c.score_bias else 0)
    groups = biased.unflatten(-1, (c.n_group, -1))
    merit = groups.topk(min(2, groups.shape[-1]), dim=-1).values.sum(-1)
    if c.group_score == "max":
        merit = groups.max(dim=-1).values
    best = merit.topk(c.topk_group, dim=-1).indices
    open_ = torch.zeros(groups.shape[:2], dtype=torch.bool).scatter(1, best, True).unsqueeze(-1).expand_as(groups)
    chosen = biased.masked_fill(~open_.flatten(1), -math.inf).topk(c.num_experts_per_tok, dim=-1).indices
    return scores, chosen.sort(-1).values


def routing_of(model: Decoder, tokens: Tensor) -> list[Routing]:
    output = model(tokens)
    further = [one for out in model.predict_with_mtp(output.hidden, tokens) for one in out.routing]
    return [*output.routing, *further]


@every_backend
@every_router
@pytest.mark.parametrize("how", ["autocast", "bf16 weights"])
def test_the_router_is_computed_in_fp32(how: str, router: MoEConfig, ops: Backend) -> None:
    """Its affinities are exact to fp32's rounding, and 1,024 tokens choose the experts that they choose in float64."""
    model = loud(router, ops=ops)
    if how == "bf16 weights":
        model = model.to(torch.bfloat16)
    read, tokens = watched(model), some_tokens()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        found = routing_of(model, tokens)
    assert len(found) == len(read) == 2, "the prediction module has a router"
    for layer, x, routing in zip(model.routing_ffns(), read, found, strict=True):
        scores, chosen = exact(layer, x)
        assert routing.scores.dtype == routing.weights.dtype == torch.float32
        assert float((routing.scores - scores).abs().max()) < 1e-6
        assert torch.equal(routing.indices.sort(-1).values, chosen)
        gates = scores.gather(-1, routing.indices)
        gates = gates / gates.sum(-1, keepdim=True) if router.router.norm_topk_prob else gates
        assert float((routing.weights - router.router.routed_scaling_factor * gates).abs().max()) < 1e-6


@pytest.mark.parametrize("ops", [TORCH, REFERENCE], ids=lambda ops: ops.name)
def test_the_gates_of_experts_have_a_gradient_in_fp32(ops: Backend) -> None:
    """Under autocast: a gate's gradient is its expert's answer times what is asked of it, and neither is rounded again."""
    layer = loud(ROUTERS["sigmoid"]).routing_ffns()[0]
    x = torch.randn(60, HIDDEN, generator=torch.Generator().manual_seed(5))
    up, down = layer.experts.gate_up_proj, layer.experts.down_proj
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, routing = layer(x, ops, None)
        assert routing is not None
        gates = routing.weights.detach().requires_grad_()
        out = ops.experts(x, replace(routing, weights=gates), up, down)
        pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(6)).to(out.dtype)
    (found,) = torch.autograd.grad((out * pull).sum(), gates)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for rank in range(2):
            alone = replace(routing, indices=routing.indices[:, rank : rank + 1], weights=torch.ones(60, 1))
            answer = ops.experts(x, alone, up, down).detach()
            wanted = (answer.double() * pull.double()).sum(-1)
            assert float((found[:, rank] - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


@every_backend
@pytest.mark.parametrize("attention", [MLA, GQA], ids=lambda config: config.kind)
def test_the_stream_between_blocks_is_fp32_under_autocast(attention: MLAConfig | GQAConfig, ops: Backend) -> None:
    """What blocks add is rounded, what they add to is not: the hidden states leave every block and the last norm in fp32."""
    model = loud(ROUTERS["sigmoid"], attention, ops=ops)
    seen: list[torch.dtype] = []
    for block in [*model.layers, model.mtp[0].block]:
        block.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
        block.register_forward_hook(lambda _, __, out: seen.append(out[0].dtype))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = some_tokens()
        hidden = model(tokens).hidden
        further = model.predict_with_mtp(hidden, tokens)[0].hidden
    assert seen == [torch.float32] * 6 and hidden.dtype == further.dtype == torch.float32


def test_a_lora_is_merged_in_fp32_under_autocast() -> None:
    model = loud(ROUTERS["sigmoid"])
    LoRA(r=4).attach(model, seed=0)
    linear = next(m for m in model.modules() if isinstance(m, LoRALinear))
    nn.init.normal_(linear.lora_B, generator=torch.Generator().manual_seed(8))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        cast = linear.weight
    assert torch.equal(cast, linear.weight.detach())
