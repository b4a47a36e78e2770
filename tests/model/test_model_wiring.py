"""What a layer is handed on: epsilon, angles, the place in a replay, biases, repacked copies; by second writings and laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from rorqual.core.errors import DataError
from rorqual.model import Decoder, ModelConfig, Stage, account, build
from rorqual.model.attention import AttentionConfig, AttentionContext, GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, FFNConfig, MoEConfig
from rorqual.model.init import init_weights
from rorqual.model.skeleton import skeleton
from rorqual.model.training_cache import PackedBatchCache
from rorqual.ops.backends import REFERENCE, TORCH, TORCH_INVARIANT, Backend
from rorqual.ops.layer import Layer
from rorqual.ops.rope import ANGLE_CHUNK, Rope, Yarn, rope_table, softmax_factor

VOCAB, HIDDEN, SEQ = 40, 32, 14
DENSE = DenseConfig(intermediate_size=24)
MOE = MoEConfig(n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=12, n_shared_experts=1)


def moe(**router: Any) -> MoEConfig:
    return MOE.model_copy(update={"router": MOE.router.model_copy(update=router)})


GQA = GQAConfig(num_attention_heads=6, num_key_value_heads=2, head_dim=8)
MLATENT = MLAConfig(
    num_attention_heads=3, q_lora_rank=12, kv_lora_rank=16, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=8
)
TOKENS = torch.randint(VOCAB, (2, SEQ), generator=torch.Generator().manual_seed(0))


def config(*stages: tuple[AttentionConfig, FFNConfig], **fields: Any) -> ModelConfig:
    layers = tuple(Stage(layers=1, attention=attention, ffn=ffn) for attention, ffn in stages)
    return ModelConfig(vocab_size=VOCAB, hidden_size=HIDDEN, stages=layers, **fields)


@torch.no_grad()
def loud(config: ModelConfig, ops: Backend = REFERENCE) -> Decoder:
    """Attention is peaked, norms and biases are random, and nothing is small."""
    model, generator = Decoder(config, ops), torch.Generator().manual_seed(1)
    for name, tensor in sorted(model.state_dict().items()):
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith(("norm.weight", "layernorm.weight")):
            tensor.copy_(1 + 0.2 * noise)
        elif name.endswith("bias"):
            tensor.copy_(0.2 * noise)
        else:
            gain = 3.0 if "q_" in name else 1.0
            tensor.copy_(noise * gain / (1 if name.startswith("embed") else math.sqrt(tensor.shape[-1])))
    return model


def relative(ours: Tensor, expected: Tensor) -> float:
    return float((ours.detach().double() - expected.double()).abs().max() / expected.abs().max())


# ---- norms


@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_every_norm_has_the_epsilon_of_the_model(eps: float) -> None:
    """Also those inside the attention and inside the prediction modules."""
    stages = ((GQA.model_copy(update={"qk_norm": True}), DENSE), (MLATENT, MOE))
    model = Decoder(config(*stages, rms_norm_eps=eps, num_nextn_predict_layers=1))
    found = {name: module.eps for name, module in model.named_modules() if hasattr(module, "eps")}
    assert len(found) == 4 + 4 + 1 + 4 + 3 and set(found.values()) == {eps}


# ---- attention


def turned(x: Tensor, angle: Tensor, *, interleaved: bool) -> Tensor:
    """x [seq, dim] turned by angle [seq, dim / 2], as complex numbers."""
    pairs = x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).transpose(-1, -2)
    out = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angle), angle))
    return (out if interleaved else out.transpose(-1, -2)).flatten(-2)


def slow_gqa(model: Decoder, index: int, x: Tensor, positions: Tensor) -> Tensor:
    """Layer `index`'s attention of x [seq, hidden], head by head in fp64."""
    c: Any = model.config.layers[index].attention
    prefix, state = f"layers.{index}.attention.", {n: t.detach().double() for n, t in model.state_dict().items()}

    def part(name: str, x: Tensor) -> Tensor:
        y = x @ state[f"{prefix}{name}.weight"].T
        return y + state[f"{prefix}{name}.bias"] if f"{prefix}{name}.bias" in state else y

    length, scale = 1.0, c.head_dim**-0.5
    pair = torch.arange(c.head_dim // 2).double()
    angle = positions.double().unsqueeze(-1) * c.rope.theta ** (-2 * pair / c.head_dim)
    if c.rope.yarn is not None:  # of factor 4, as far as it is independent of the frequencies
        length, scale = rope_length(c.rope.yarn), scale * (0.1 * c.rope.yarn.mscale_all_dim * math.log(4) + 1) ** 2
        angle = positions.double().unsqueeze(-1) * inverse(c.rope, c.head_dim)
    q, k, v = (part(f"{name}_proj", x.double()).unflatten(-1, (-1, c.head_dim)) for name in "qkv")
    seen = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    heads = []
    for head in range(c.num_attention_heads):
        group = head // (c.num_attention_heads // c.num_key_value_heads)
        one, other = (length * turned(t, angle, interleaved=False) for t in (q[:, head], k[:, group]))
        weights = (scale * one @ other.T).masked_fill(~seen, -math.inf).softmax(-1)
        heads.append(weights @ v[:, group])
    return part("o_proj", torch.cat(heads, dim=-1))


def inverse(rope: Rope, dim: int) -> Tensor:
    cos, sin = rope_table(rope, dim, torch.tensor([0, 1]))
    return torch.atan2(sin[1], cos[1]).double()  # below pi at position 1


def rope_length(yarn: Yarn) -> float:
    both = yarn.mscale and yarn.mscale_all_dim
    return (0.1 * yarn.mscale * math.log(4) + 1) / (0.1 * yarn.mscale_all_dim * math.log(4) + 1) if both else 1.0


YARN = Yarn(factor=4.0, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=0.9)
GROUPED = {
    "three queries a key": GQA,
    "biases": GQA.model_copy(update={"attention_bias": True, "output_bias": True}),
    "a temperature of the softmax": GQA.model_copy(update={"rope": Rope(yarn=YARN)}),
    "one key": GQA.model_copy(update={"num_key_value_heads": 1, "rope": Rope(theta=50.0)}),
}


@torch.no_grad()
@pytest.mark.parametrize("ops", [REFERENCE, TORCH, TORCH_INVARIANT], ids=lambda ops: ops.name)
@pytest.mark.parametrize("name", GROUPED)
def test_grouped_attention_equals_its_second_writing(name: str, ops: Backend) -> None:
    model = loud(config((GROUPED[name], DENSE)), ops)
    x = torch.randn(1, SEQ, HIDDEN, generator=torch.Generator().manual_seed(2))
    positions = torch.arange(SEQ).unsqueeze(0)
    mask = torch.ones(1, 1, SEQ, SEQ, dtype=torch.bool).tril()
    cache = PackedBatchCache(positions, None, [GROUPED[name].cache_layout()], ops.attention) if ops.in_blocks else None
    context = AttentionContext(positions, None if cache else mask, ops, cache.table if cache else None)
    found = model.layers[0].attention(x, context, cache.layer(0) if cache else None)  # type: ignore[union-attr, operator]
    assert relative(found[0], slow_gqa(model, 0, x[0], positions[0])) < 1e-5
    assert (softmax_factor(GROUPED[name].rope) != 1) == ("temperature" in name)


@torch.no_grad()
@pytest.mark.parametrize("ops", [TORCH, TORCH_INVARIANT], ids=lambda ops: ops.name)
@pytest.mark.parametrize("change", [{"rope": Rope(theta=50.0)}, {"head_dim": 12}], ids=["theta", "width"])
def test_layers_of_other_angles_in_one_model_each_have_their_own(change: dict[str, Any], ops: Backend) -> None:
    """The second layer alone, fed what the first gave, gives what both together give."""
    other = GQA.model_copy(update=change)
    both = loud(config((GQA, DENSE), (other, DENSE)), ops)
    first, second = (Decoder(config((attention, DENSE)), ops) for attention in (GQA, other))
    state = both.state_dict()
    for index, alone in enumerate((first, second)):
        own = {n.replace("layers.0.", f"layers.{index}."): n for n in alone.state_dict() if n.startswith("layers.")}
        alone.load_state_dict({mine: state[theirs] for theirs, mine in own.items()}, strict=False)
    first.norm, second.norm = Passing(), both.norm  # type: ignore[assignment]
    first.embed_tokens = both.embed_tokens
    second.embed_tokens = Given(first(TOKENS).hidden)  # type: ignore[assignment]
    assert torch.equal(second(TOKENS).hidden, both(TOKENS).hidden)


class Passing(nn.Module):
    def forward(self, x: Tensor, ops: Backend) -> Tensor:
        return x


class Given(nn.Module):
    """An embedding that gives the same for any tokens."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x

    def forward(self, tokens: Tensor) -> Tensor:
        return self.x


# ---- what layers tell a backend, which repacks a copy by it


class Every(Backend):
    """Repacks each map and all experts, and counts them, so that nothing is left to the plain path."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []
        self.stacks: list[Tensor] = []

    def prepare_linear(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        self.maps.append(weight)
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
        return linear

    def prepare_experts(self, gate_up: Tensor, down: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        self.stacks += [gate_up, down]
        return [w.clone() for w in gate_up], [w.clone() for w in down]


PREPARED: dict[str, tuple[AttentionConfig, FFNConfig]] = {
    "gqa": (GQA.model_copy(update={"attention_bias": True, "qk_norm": True}), DenseConfig(intermediate_size=64)),
    "mla": (MLATENT, MOE.model_copy(update={"moe_intermediate_size": 32})),
    "mla without latents of queries": (MLATENT.model_copy(update={"q_lora_rank": 0}), DENSE),
}


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
@pytest.mark.parametrize("name", PREPARED)
def test_a_prepared_copy_computes_the_same(name: str, tied: bool) -> None:
    """Both forms of latent attention, without a cache and with one; and nothing of it is trained or kept twice."""
    shape = config(PREPARED[name], PREPARED[name]).model_copy(update={"tie_word_embeddings": tied})
    plain = loud(shape)
    every = Every()
    model = every.prepare(plain)
    fused = [m for m in model.modules() if isinstance(m, Layer) and m.fused is not None]
    shared = [m for m in plain.modules() if isinstance(m, Layer) and m.shared_input]
    assert len(fused) == len(shared) == 4, "two layers, each an attention and a dense network or shared experts"
    assert len(every.stacks) == (4 if name == "mla" else 0)
    kept = {n.rpartition(".")[2] for n, _ in model.named_modules()}
    assert not kept & {"q_proj", "k_proj", "v_proj", "kv_a_proj_with_mqa", "kv_b_proj", "gate_proj", "up_proj"}
    held = {id(weight) for weight in every.maps} - {id(plain.embed_tokens.weight)}
    assert not held & {id(parameter) for parameter in model.parameters()}, "what was repacked is kept twice"
    expected = plain.logits(plain(TOKENS).hidden)
    assert relative(model.logits(model(TOKENS).hidden), expected) < 1e-5
    positions = torch.arange(TOKENS.shape[1]).expand_as(TOKENS)
    sheet = PackedBatchCache(
        positions, None, [stage.attention.cache_layout() for stage in shape.layers], TORCH_INVARIANT.attention
    )
    got = model(TOKENS, positions, cache=sheet)
    assert relative(model.logits(got.hidden), expected) < 1e-5
    with torch.enable_grad():
        assert list(plain.parameters()) and plain(TOKENS).hidden.requires_grad, "the original is left as it was"


@torch.no_grad()
def test_derived_tensors_lie_as_they_are_read() -> None:
    """Maps of latents in one piece, in the order in which their product reads them; the router's weight in fp32."""
    plain = loud(config((MLATENT, MOE))).bfloat16()
    model = REFERENCE.prepare(plain)
    attention, router = model.layers[0].attention, model.layers[0].ffn.router
    w_uk, w_uv = attention.tensors("up_maps")
    assert w_uk.is_contiguous() and w_uv.transpose(1, 2).is_contiguous()
    for one, other in zip(plain.layers[0].attention.up_maps(), (w_uk, w_uv), strict=True):
        assert torch.equal(one, other)
    (wide,) = router.tensors("wide_gate")
    assert wide.dtype == torch.float32 and torch.equal(wide, plain.layers[0].ffn.router.gate.float())
    assert "gate" not in dict(router.named_parameters())


# ---- the router in the model


@torch.no_grad()
@pytest.mark.parametrize("ops", [REFERENCE, TORCH, TORCH_INVARIANT], ids=lambda ops: ops.name)
def test_each_layer_replays_its_own_choices(ops: Backend) -> None:
    """Dense layers have no place in a replay, and -1 leaves the choice to the router."""
    model = loud(config((GQA, MOE), (GQA, DENSE), (GQA, MOE)), ops)
    generator = torch.Generator().manual_seed(3)
    replay = torch.rand(2, SEQ, 2, 6, generator=generator).argsort(-1)[..., :2]
    out = model(TOKENS, replay=replay)
    assert len(out.routing) == 2
    for layer, routing in enumerate(out.routing):
        assert torch.equal(routing.indices, replay[:, :, layer].flatten(0, 1))
        assert not torch.equal(routing.own, routing.indices)
    free = model(TOKENS)
    partly = replay.clone()
    partly[:, :, 1] = -1
    routing = model(TOKENS, replay=partly).routing[1]
    assert torch.equal(routing.indices, routing.own)
    own = torch.stack([r.indices for r in free.routing], 1).view(2, SEQ, 2, 2)
    assert relative(model(TOKENS, replay=own).hidden, free.hidden) == 0 < relative(out.hidden, free.hidden)


def test_routers_are_listed_as_the_steps_of_training_meet_them() -> None:
    """The main model's from the first layer on, then the prediction modules'."""
    model = loud(config((GQA, MOE), (GQA, DENSE), (GQA, MOE), num_nextn_predict_layers=2))
    out = model(TOKENS)
    further = model.predict_further(out.hidden, TOKENS)
    assert model.routers() == [model.layers[0].ffn, model.layers[2].ffn, *(m.block.ffn for m in model.mtp)]
    met = [*out.routing, *(routing for output in further for routing in output.routing)]
    assert len(met) == len(model.routers()) == 4
    assert [len(routing.indices) for routing in met] == [2 * SEQ, 2 * SEQ, 2 * (SEQ - 1), 2 * (SEQ - 2)]


@torch.no_grad()
def test_a_document_predicts_further_what_it_predicts_alone() -> None:
    model = loud(config((GQA, MOE), num_nextn_predict_layers=2))
    cut, row = 5, TOKENS[:1]
    segments = (torch.arange(SEQ) >= cut).long().unsqueeze(0)
    positions = torch.cat((torch.arange(cut), torch.arange(SEQ - cut))).unsqueeze(0)
    together = model.predict_further(model(row, positions, segments=segments).hidden, row, positions, segments)
    for start, stop in ((0, cut), (cut, SEQ)):
        alone = model.predict_further(model(row[:, start:stop]).hidden, row[:, start:stop])
        for depth, (one, all_) in enumerate(zip(alone, together, strict=True)):
            assert relative(all_.hidden[:, start : stop - 1 - depth], one.hidden) < 1e-5


@torch.no_grad()
def test_a_tokens_affinities_have_bits_of_their_own() -> None:
    """However many tokens there are, in the operations that promise it: the exponential is theirs, too."""
    (router,) = loud(config((GQA, MOE)), TORCH_INVARIANT).routers()
    x = torch.randn(40, HIDDEN, generator=torch.Generator().manual_seed(4))
    whole = router(x, TORCH_INVARIANT, None)[1].scores  # type: ignore[union-attr]
    for count in range(16, 40):
        assert torch.equal(router(x[:count], TORCH_INVARIANT, None)[1].scores, whole[:count]), count  # type: ignore[union-attr]


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_fp32_of_a_model_in_bf16(tied: bool) -> None:
    model = loud(config((GQA, DENSE), tie_word_embeddings=tied)).bfloat16()
    logits = model.logits(model(TOKENS).hidden)
    assert logits.dtype == torch.float32 and logits.shape == (2, SEQ, VOCAB)


def test_under_autocast_the_stream_of_a_prediction_module_stays_fp32() -> None:
    model = loud(config((GQA, DENSE), num_nextn_predict_layers=1))
    seen: list[torch.dtype] = []
    model.mtp[0].block.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model.predict_further(model(TOKENS).hidden, TOKENS)
    assert seen == [torch.float32]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_group": 4}, "multiple of n_group"),
        ({"n_group": 2, "topk_group": 3}, "topk_group"),
        ({"n_group": 2, "topk_group": 1, "num_experts_per_tok": 4}, "num_experts_per_tok"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok"),
        ({"n_group": 6, "topk_group": 2}, "top2"),
    ],
    ids=["rest", "groups", "experts of groups", "experts", "two best of one"],
)
def test_a_router_whose_numbers_contradict_each_other_is_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config((GQA, moe(**fields)))


@pytest.mark.parametrize(
    "fields",
    [
        {"n_group": 3, "topk_group": 3, "num_experts_per_tok": 6},
        {"n_group": 2, "topk_group": 1, "num_experts_per_tok": 3},
        {"num_experts_per_tok": 6},
        {"n_group": 6, "topk_group": 2, "group_score": "max"},
        {"n_routed_experts": 2, "num_experts_per_tok": 1},
    ],
    ids=["all groups", "all of a group", "all", "groups of one", "two"],
)
def test_the_most_that_a_router_can_be_asked_for_runs(fields: dict[str, Any]) -> None:
    model = loud(config((GQA, asked := moe(**fields))))
    (routing,) = model(TOKENS).routing
    assert routing.indices.shape[1] == asked.router.num_experts_per_tok == asked.experts_per_token()
    assert all(len(set(row)) == len(row) for row in routing.indices.tolist())


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (GQA.model_copy(update={"num_key_value_heads": 4}), "num_key_value_heads"),
        (GQA.model_copy(update={"head_dim": 7}), "even"),
        (MLATENT.model_copy(update={"qk_rope_head_dim": 5}), "even"),
    ],
    ids=["heads", "width", "shared key"],
)
def test_an_attention_that_cannot_be_divided_is_refused(attention: AttentionConfig, message: str) -> None:
    config((GQA, DENSE), (MLATENT, DENSE))
    with pytest.raises(ValidationError, match=message):
        config((GQA, DENSE), (attention, DENSE))


# ---- weights, rows and what is counted


def test_weights_follow_the_names_and_not_the_order_in_which_parts_were_made() -> None:
    one, other = nn.Module(), nn.Module()
    for module, names in ((one, "ab"), (other, "ba")):
        for name in names:
            module.register_module(name, nn.Linear(4, 3))
        init_weights(module, 0.5, 7)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert not one.a.bias.any() and one.a.weight.all()  # type: ignore[union-attr]


def test_fresh_biases_are_zero_and_norms_one() -> None:
    model = build(config((GROUPED["biases"], MOE)), seed=0)
    vectors = {name: p for name, p in model.named_parameters() if p.dim() == 1}
    assert sum(name.endswith("bias") for name in vectors) == 4
    for name, parameter in vectors.items():
        assert set(parameter.tolist()) == {0.0 if name.endswith("bias") else 1.0}, name


@pytest.mark.parametrize("make", [lambda c, o: build(c, seed=0, ops=o), skeleton], ids=["built", "empty"])
def test_a_model_runs_on_the_operations_that_it_was_given(make: Callable[[ModelConfig, Backend], Decoder]) -> None:
    assert [make(config((GQA, DENSE)), ops).ops for ops in (REFERENCE, TORCH_INVARIANT)] == [REFERENCE, TORCH_INVARIANT]


@pytest.mark.parametrize("length", [ANGLE_CHUNK, ANGLE_CHUNK + 1])
def test_a_row_has_the_angles_of_its_last_position(length: int) -> None:
    sheet = PackedBatchCache(torch.arange(length).unsqueeze(0), None, [], TORCH_INVARIANT.attention)
    cos, sin = sheet.table(Rope(), 4)
    assert len(cos) == len(sin) == ANGLE_CHUNK * (1 if length == ANGLE_CHUNK else 2)


def test_a_segment_that_goes_on_where_another_ended_is_no_whole_document() -> None:
    positions = torch.arange(4).unsqueeze(0)
    PackedBatchCache(positions, torch.tensor([[3, 3, 3, 3]]), [], TORCH_INVARIANT.attention)
    for segments in ([0, 0, 1, 1], [0, 0, 0, 1]):
        with pytest.raises(DataError, match="position 0"):
            PackedBatchCache(positions, torch.tensor([segments]), [], TORCH_INVARIANT.attention)


def test_the_account_of_layers_that_differ() -> None:
    """The cache of each layer is its own, no parameter of a dense model is idle, and the context is the one asked for."""
    mixed = account(config((GQA, DENSE), (MLATENT, DENSE), (MLATENT, DENSE)), context=3, cache_value_bytes=1)
    assert mixed.cache_bytes == 2 * 2 * 8 + 2 * (16 + 4)
    assert mixed.context == 3
    for attention in (*GROUPED.values(), GQA.model_copy(update={"qk_norm": True}), MLATENT):
        found = account(config((attention, DENSE)))
        assert found.active == found.total == sum(p.numel() for p in Decoder(config((attention, DENSE))).parameters())


def test_a_router_without_a_bias_has_none_to_keep_or_to_move() -> None:
    for biased in (True, False):
        model = Decoder(config((GQA, moe(score_bias=biased))))
        assert any(name.endswith("correction_bias") for name in model.state_dict()) is biased
        model.routers()[0].balance(torch.arange(6), 0.5)
        moved = [(name, buffer) for name, buffer in model.named_buffers() if bool(buffer.any())]
        assert [name for name, _ in moved] == ["layers.0.ffn.router.e_score_correction_bias"] * biased
