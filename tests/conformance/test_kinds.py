"""What every attention kind and every feed-forward kind must hold. Being registered is being tested: no example, no pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rorqual.core.config import kinds, parse
from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.attention import AttentionConfig, AttentionContext, GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, FFNConfig, MoEConfig
from rorqual.model.init import init_weights
from rorqual.ops.attention import cache_mask, document_mask
from rorqual.ops.registry import FAST, REFERENCE
from rorqual.ops.rope import Rope, Yarn

HIDDEN, BATCH, SEQ, EPS = 24, 2, 10, 1e-6
YARN = Rope(yarn=Yarn(factor=4.0, original_max_position_embeddings=8, mscale=0.7, mscale_all_dim=0.7))

ATTENTION: list[AttentionConfig] = [
    GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8, qk_norm=True),
    GQAConfig(num_attention_heads=2, num_key_value_heads=2, head_dim=6, attention_bias=True, rope=YARN),
    GQAConfig(num_attention_heads=3, num_key_value_heads=1, head_dim=8),
    MLAConfig(
        num_attention_heads=2, q_lora_rank=10, kv_lora_rank=8, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5
    ),
    MLAConfig(num_attention_heads=3, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=6, rope=YARN),
]
FFN: list[FFNConfig] = [
    DenseConfig(intermediate_size=20),
    MoEConfig(n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=8, n_shared_experts=1),
    MoEConfig(n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=8, n_group=4, topk_group=2),
    MoEConfig(
        n_routed_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=8,
        scoring_func="softmax",
        norm_topk_prob=False,
        score_bias=False,
        group_score="max",
    ),
]


def label(config: AttentionConfig | FFNConfig) -> str:
    return config.kind


attention_kinds = pytest.mark.parametrize("config", ATTENTION, ids=label)
ffn_kinds = pytest.mark.parametrize("config", FFN, ids=label)
every_pair = pytest.mark.parametrize(
    ("attention", "ffn"),
    [(a, FFN[i % len(FFN)]) for i, a in enumerate(ATTENTION)] + [(ATTENTION[i], f) for i, f in enumerate(FFN)],
    ids=label,
)


def test_every_registered_kind_has_an_example() -> None:
    assert set(kinds(AttentionConfig)) == {config.kind for config in ATTENTION}
    assert set(kinds(FFNConfig)) == {config.kind for config in FFN}


class Rows:
    """A cache of one layer for tests: a tensor [batch, room, width], written by position; it notes the width it was given."""

    def __init__(self, room: int, width: int, batch: int = BATCH) -> None:
        self.kept, self.width, self.received = torch.zeros(batch, room, width), width, 0

    def append(self, positions: Tensor, values: Tensor) -> Tensor:
        self.received = values.shape[-1]
        self.kept = self.kept.scatter(1, positions.unsqueeze(-1).expand_as(values), values.to(self.kept.dtype))
        return self.kept


class Layers:
    def __init__(self, config: ModelConfig, room: int) -> None:
        self.keys, self.rows = room, [Rows(room, stage.attention.cache_width()) for stage in config.layers]

    def layer(self, index: int) -> Rows:
        return self.rows[index]


def model_of(attention: AttentionConfig, ffn: FFNConfig, *, mtp: int = 0) -> Decoder:
    config = ModelConfig(
        vocab_size=50,
        hidden_size=HIDDEN,
        stages=(Stage(layers=2, attention=attention, ffn=ffn),),
        initializer_range=0.3,
        num_nextn_predict_layers=mtp,
    )
    model = build(config, seed=1)
    for layer in model.routers():
        layer.e_score_correction_bias.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    return model


def some_tokens(seed: int = 0) -> Tensor:
    return torch.randint(50, (BATCH, SEQ), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def hidden(model: Decoder, tokens: Tensor, **arguments: Tensor) -> Tensor:
    return model(tokens, **arguments).hidden


def near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@attention_kinds
def test_attention_builds_as_it_accounts(config: AttentionConfig) -> None:
    module = config.build(HIDDEN, EPS)
    cost = config.cost(HIDDEN, 0)
    assert cost.params == cost.active == sum(p.numel() for p in module.parameters())
    longer = config.cost(HIDDEN, 100)
    assert longer.params == cost.params and longer.flops > cost.flops > 0


@ffn_kinds
def test_ffn_builds_as_it_accounts(config: FFNConfig) -> None:
    module, cost = config.build(HIDDEN), config.cost(HIDDEN)
    assert cost.params == sum(t.numel() for t in module.state_dict().values())
    assert 0 < cost.active <= cost.params and cost.flops > 0
    assert (config.experts_per_token() > 0) == (cost.active < cost.params)


@attention_kinds
def test_attention_keeps_its_shape_and_caches_what_it_says(config: AttentionConfig) -> None:
    module = config.build(HIDDEN, EPS)
    init_weights(module, 0.3, 0)
    x = torch.randn(BATCH, SEQ, HIDDEN, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(SEQ).expand(BATCH, SEQ)
    whole = module(x, AttentionContext(positions, document_mask(torch.zeros_like(positions)), REFERENCE), None)
    assert whole.shape == x.shape
    rows = Rows(SEQ + 3, config.cache_width())
    for absorb in (None, True, False):
        cached = module(x, AttentionContext(positions, cache_mask(positions, SEQ + 3), FAST, absorb), rows)
        assert rows.received == config.cache_width()
        near(cached, whole)


@ffn_kinds
def test_ffn_keeps_its_shape_and_says_where_tokens_went(config: FFNConfig) -> None:
    module = config.build(HIDDEN)
    init_weights(module, 0.3, 0)
    x = torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(0))
    y, routing = module(x, FAST, None)
    assert y.shape == x.shape
    if config.experts_per_token() == 0:
        assert routing is None
        return
    assert routing is not None and routing.indices.shape == (7, config.experts_per_token())
    again, replayed = module(x, FAST, routing.indices)
    assert replayed is not None and torch.equal(again, y)
    other = (routing.indices + 1) % routing.scores.shape[-1]
    assert not torch.allclose(module(x, FAST, other)[0], y)
    # Tokens do not see each other: each alone gives the same.
    near(torch.cat([module(row.unsqueeze(0), FAST, None)[0] for row in x]), y)


@every_pair
def test_a_later_token_never_changes_an_earlier_output(attention: AttentionConfig, ffn: FFNConfig) -> None:
    model, tokens = model_of(attention, ffn), some_tokens()
    before = hidden(model, tokens)
    for cut in (1, 5, SEQ - 1):
        changed = tokens.clone()
        changed[:, cut:] = (changed[:, cut:] + 7) % 50
        after = hidden(model, changed)
        near(after[:, :cut], before[:, :cut])
        assert not torch.allclose(after[:, cut:], before[:, cut:], atol=1e-2)


@every_pair
def test_packed_documents_equal_themselves_alone(attention: AttentionConfig, ffn: FFNConfig) -> None:
    model, tokens, cut = model_of(attention, ffn), some_tokens(), 4
    segments = (torch.arange(SEQ) >= cut).long().expand(BATCH, SEQ)
    positions = torch.cat((torch.arange(cut), torch.arange(SEQ - cut))).expand(BATCH, SEQ)
    packed = hidden(model, tokens, positions=positions, segments=segments)
    near(packed[:, :cut], hidden(model, tokens[:, :cut]))
    near(packed[:, cut:], hidden(model, tokens[:, cut:]))
    leaking = hidden(model, tokens)
    assert not torch.allclose(leaking[:, cut:], packed[:, cut:], atol=1e-2)


@every_pair
def test_padding_and_other_rows_change_nothing(attention: AttentionConfig, ffn: FFNConfig) -> None:
    model, tokens = model_of(attention, ffn), some_tokens()
    alone = hidden(model, tokens[:1, :6])
    padded = tokens.clone()
    padded[:, 6:] = 0
    segments = (torch.arange(SEQ) >= 6).long().expand(BATCH, SEQ)
    near(hidden(model, padded, segments=segments)[:1, :6], alone)


@every_pair
@pytest.mark.parametrize("chunks", [(SEQ,), (1,) * SEQ, (4, 1, 5), (9, 1)])
def test_cached_equals_uncached_at_every_split(
    attention: AttentionConfig, ffn: FFNConfig, chunks: tuple[int, ...]
) -> None:
    """Whole, token by token, in chunks; the latent form (absorbed) and the expanded one."""
    model, tokens = model_of(attention, ffn), some_tokens()
    expected = hidden(model, tokens)
    for absorb in (None, True, False):
        cache, start, parts = Layers(model.config, SEQ + 2), 0, []
        for length in chunks:
            at = torch.arange(start, start + length).expand(BATCH, length)
            with torch.no_grad():
                output = model(tokens[:, start : start + length], at, cache=cache, absorb=absorb)
            parts.append(output.hidden)
            start += length
        near(torch.cat(parts, dim=1), expected)


@every_pair
def test_gradients_reach_every_parameter(attention: AttentionConfig, ffn: FFNConfig) -> None:
    model, tokens = model_of(attention, ffn, mtp=1), some_tokens()
    output = model(tokens)
    further = model.predict_further(output.hidden, tokens)
    weights = torch.Generator().manual_seed(0)
    terms = [model.logits(x) for x in (output.hidden, further[0].hidden)]
    sum((t * torch.randn(t.shape, generator=weights)).sum() for t in terms).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or float(p.grad.abs().max()) < 1e-6]
    assert not silent


@every_pair
def test_bf16_keeps_the_routers_bias_in_fp32_through_save_and_load(
    attention: AttentionConfig, ffn: FFNConfig, tmp_path: Path
) -> None:
    model = model_of(attention, ffn)
    exact = [layer.e_score_correction_bias.clone() for layer in model.routers()]
    model = model.to(torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert hidden(model, some_tokens()).dtype == torch.bfloat16
    state = model.state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    back = model_of(attention, ffn).to(torch.bfloat16)
    for layer in back.routers():
        layer.e_score_correction_bias.zero_()
    loaded = load_file(tmp_path / "weights.safetensors")
    back.load_state_dict(loaded, strict=True)
    names = [name for name in state if name.endswith("e_score_correction_bias")]
    persistent = isinstance(ffn, MoEConfig) and ffn.score_bias
    assert len(names) == (2 if persistent else 0) and all(loaded[name].dtype == torch.float32 for name in names)
    for layer, bias in zip(back.routers(), exact):
        assert layer.e_score_correction_bias.dtype == torch.float32
        if persistent:
            assert torch.equal(layer.e_score_correction_bias, bias)
    for layer in back.half().float().routers():
        if persistent:
            assert any(torch.equal(layer.e_score_correction_bias, bias) for bias in exact)


@every_pair
def test_the_config_survives_being_written(attention: AttentionConfig, ffn: FFNConfig) -> None:
    config = model_of(attention, ffn).config
    assert parse(ModelConfig, config.model_dump(mode="json"), where="test") == config


@every_pair
def test_the_same_seed_gives_the_same_model(attention: AttentionConfig, ffn: FFNConfig) -> None:
    config = model_of(attention, ffn).config
    one, two, other = (build(config, seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
