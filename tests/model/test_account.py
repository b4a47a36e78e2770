"""The account equals what is built (on the meta device) and what torch's own counter counts in a real step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rorqual.model import Decoder, ModelConfig, Stage, account, build
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.presets import preset, preset_names
from rorqual.ops.backends import REFERENCE, Backend

SEQ, BATCH = 11, 3


def small(*, q_lora_rank: int = 64, mtp: int = 0, tied: bool = False, shared: int = 1) -> ModelConfig:
    """In the shape of the quickstart's teacher."""
    attention = MLAConfig(
        num_attention_heads=4,
        q_lora_rank=q_lora_rank,
        kv_lora_rank=48,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=32,
    )
    moe = MoEConfig(n_routed_experts=16, num_experts_per_tok=2, moe_intermediate_size=64, n_shared_experts=shared)
    return ModelConfig(
        vocab_size=264,
        hidden_size=128,
        stages=(
            Stage(layers=1, attention=attention, ffn=DenseConfig(intermediate_size=256)),
            Stage(layers=2, attention=attention, ffn=moe),
        ),
        num_nextn_predict_layers=mtp,
        tie_word_embeddings=tied,
    )


def grouped(**options: bool) -> ModelConfig:
    attention = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=16, **options)
    return ModelConfig(
        vocab_size=100,
        hidden_size=48,
        stages=(Stage(layers=2, attention=attention, ffn=DenseConfig(intermediate_size=80)),),
    )


SMALL: dict[str, Callable[[], ModelConfig]] = {
    "quickstart-like": lambda: small(mtp=1),
    "no q_lora, tied, no shared expert": lambda: small(q_lora_rank=0, tied=True, shared=0),
    "two prediction modules, tied": lambda: small(mtp=2, tied=True),
    "qwen-like": lambda: grouped(qk_norm=True),
    "biases of queries, keys and values": lambda: grouped(attention_bias=True),
    "biases of the output, too": lambda: grouped(attention_bias=True, output_bias=True),
}


def held(module: nn.Module) -> int:
    """Parameters and persistent buffers (the router's bias counts: it is trained, though not by gradient)."""
    return sum(tensor.numel() for tensor in module.state_dict().values())


@pytest.mark.parametrize("name", [*preset_names(), *SMALL])
def test_parameters_equal_those_of_the_built_model(name: str) -> None:
    config = SMALL[name]() if name in SMALL else preset(name)
    with torch.device("meta"):
        model = Decoder(config)
    counted = account(config)
    assert (counted.mtp, counted.total) == (held(model.mtp), held(model) - held(model.mtp))


def test_deepseek_v3_in_figures() -> None:
    a = account(preset("deepseek-v3"))
    assert round(a.total / 1e9, 2) == 671.03
    assert round(a.active / 1e9, 2) == 37.55
    assert round(a.active_lookup / 1e9, 2) == 36.63  # 36.626: 36.62 when cut, not rounded
    assert a.cache_bytes == 70_272
    # Published: "11.5B unique". It leaves out the join of hidden state and embedding, 2 x 7168 x 7168.
    assert round(a.mtp / 1e9, 2) == 11.61
    assert round((a.mtp - 2 * 7168 * 7168) / 1e9, 1) == 11.5
    # Published: 685B in the repository, in which embedding and head are stored twice.
    assert round((a.total + a.mtp + 2 * 129280 * 7168) / 1e9) == 684


def test_others_in_figures() -> None:
    lite, v2 = account(preset("deepseek-v2-lite")), account(preset("deepseek-v2"))
    assert round(lite.total / 1e9, 1) == 15.7 and round(lite.active / 1e9, 1) == 2.7
    assert round(v2.total / 1e9) == 236 and round(v2.active / 1e9) == 21
    published = {"0.6b": 0.6, "1.7b": 1.7, "4b": 4.0, "8b": 8.2, "14b": 14.8, "32b": 32.8}
    assert {n: round(account(preset(f"qwen3-{n}")).total / 1e9, 1) for n in published} == published


def test_published_sizes() -> None:
    """In billions, as the models' cards say them."""
    published = {
        "qwen2.5-0.5b": 0.49, "qwen2.5-1.5b": 1.54, "qwen2.5-3b": 3.09, "qwen2.5-7b": 7.62, "qwen2.5-14b": 14.77,
        "qwen2.5-32b": 32.76, "qwen2.5-72b": 72.71, "deepseek-r1-distill-qwen-1.5b": 1.78, "llama-3.1-8b": 8.03,
        "llama-3.1-70b": 70.55, "llama-3.1-405b": 405.85, "llama-3.2-1b": 1.24, "llama-3.2-3b": 3.21,
        "qwen3-30b-a3b": 30.53, "qwen3-235b-a22b": 235.09,
    }  # fmt: skip
    assert {name: round(account(preset(name)).total / 1e9, 2) for name in published} == published
    assert round(account(preset("smollm2-135m")).total / 1e6, 1) == 134.5
    assert 3.3e9 <= account(preset("qwen3-30b-a3b")).active < 3.4e9  # "3.3B" on its card, cut rather than rounded
    assert round(account(preset("qwen3-235b-a22b")).active / 1e9) == 22


def test_cache_bytes_of_published_models() -> None:
    """BF16, a token (DeepSeek-V3 at ISCA 2025, table 1)."""
    published = {"deepseek-v3": 70_272, "qwen2.5-72b": 327_680, "llama-3.1-405b": 516_096}
    assert {name: account(preset(name)).cache_bytes for name in published} == published


def counted_flops(config: ModelConfig, ops: Backend, *, further: bool, backward: bool) -> int:
    """torch's counter over a step: a multiply-add is two, attention over all keys of the row (a mask saves nothing)."""
    model = build(config, seed=0, ops=ops)
    tokens = torch.randint(config.vocab_size, (BATCH, SEQ), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        hidden = model(tokens).hidden
        total = model.logits(hidden).sum()
        if further:
            for output in model.predict_with_mtp(hidden, tokens):
                total = total + model.logits(output.hidden).sum()
        if backward:
            total.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", SMALL)
def test_forward_flops_equal_an_independent_count(name: str) -> None:
    config = SMALL[name]()
    counted = counted_flops(config, REFERENCE, further=False, backward=False)
    assert counted == BATCH * SEQ * account(config, context=SEQ).flops


@pytest.mark.parametrize("name", SMALL)
def test_training_flops_equal_an_independent_count(name: str) -> None:
    """Module k of multi-token prediction sees k + 1 tokens fewer, so the account is taken at each length."""
    config = SMALL[name]()
    main = config.model_copy(update={"num_nextn_predict_layers": 0})
    expected = BATCH * SEQ * account(main, context=SEQ).training_flops
    one = config.model_copy(update={"num_nextn_predict_layers": 1})
    for depth in range(config.num_nextn_predict_layers):
        length = SEQ - 1 - depth
        both, alone = (account(c, context=length).training_flops for c in (one, main))
        expected += BATCH * length * (both - alone)
    assert counted_flops(config, REFERENCE, further=True, backward=True) == expected
