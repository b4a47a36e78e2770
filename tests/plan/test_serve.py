"""Serving by roofline: laws, a hand-worked case, and what does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rorqual.core.errors import ConfigError
from rorqual.model.account import account
from rorqual.model.presets import preset
from rorqual.plan.hardware import device
from rorqual.plan.price import PRICES, price
from rorqual.plan.serve import (
    AverageRequest,
    Replica,
    cache_share_per_device,
    decode_flops,
    decode_step,
    estimate_serving,
    largest_batch,
    prefill_rate,
    smallest_replica,
    split_parameter_count,
    token_prices,
    touched_expert_share,
)

V3, QWEN = preset("deepseek-v3"), preset("qwen3-8b")
H800 = device("h800")
MIX = AverageRequest(4000, 1000, 0.5)
ONE = Replica(H800, 1, 1, "bf16", prefill_used=1.0, decode_used=1.0)


def test_a_dense_model_on_one_card_by_hand() -> None:
    """Batch 1: 8.19B weights of two bytes and the cache, over 3.35 TB/s."""
    step = decode_step(QWEN, ONE, 1, 1000)
    weights, cache = 2 * account(QWEN).total / 3.35e12, 1000 * 147456 / 3.35e12
    assert step.bottleneck == "memory"
    assert step.seconds == pytest.approx(weights + cache, rel=1e-12)
    assert 2 * account(QWEN).total / 1e9 == pytest.approx(16.4, abs=0.1)


def test_weights_are_all_parameters_but_the_prediction_modules() -> None:
    for model in (V3, QWEN):
        assert sum(split_parameter_count(model)) == account(model).total
    assert split_parameter_count(V3)[1] == 58 * 256 * 3 * 7168 * 2048


def test_absorbed_attention_costs_more_flops_and_less_memory_than_heads_would() -> None:
    """MLA at decode: 128 heads against latents of 576 and 512 (V3.2-Exp report, appendix A)."""
    attention = decode_flops(V3, 5000) - decode_flops(V3, 0)
    assert attention == 61 * 2 * 128 * (576 + 512) * 5000
    assert decode_flops(QWEN, 5000) == account(QWEN, context=5000).flops


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(1, 20000))
def test_more_sequences_take_longer_and_give_more_tokens(batch: int, keys: int) -> None:
    slower, faster = (
        decode_step(V3, replace(ONE, n=64), batch + 1, keys),
        decode_step(V3, replace(ONE, n=64), batch, keys),
    )
    assert slower.seconds >= faster.seconds
    assert (batch + 1) / slower.seconds >= batch / faster.seconds * (1 - 1e-9)


@given(st.floats(0, 1e5), st.floats(0, 1e5))
def test_experts_touched_grow_to_all_of_them(tokens: float, more: float) -> None:
    assert 0 <= touched_expert_share(V3, tokens) <= touched_expert_share(V3, tokens + more) <= 1
    assert touched_expert_share(QWEN, tokens) == 1
    assert touched_expert_share(V3, 1) == pytest.approx(8 / 256)


def test_a_latent_cache_is_copied_and_heads_are_divided() -> None:
    assert [cache_share_per_device(V3, tp) for tp in (1, 8)] == [1, 1]
    assert [cache_share_per_device(preset("llama-3.1-405b"), tp) for tp in (1, 4, 8, 16)] == [1, 1 / 4, 1 / 8, 1 / 8]


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    replica = replace(ONE, n=144, dtype="fp8")
    batch = largest_batch(V3, replica, MIX)
    served = estimate_serving(V3, replica, MIX)
    assert served.batch == batch and batch * 70272 * 5000 <= served.free < (batch + 1) * 70272 * 5000
    with pytest.raises(ConfigError, match=rf"cache of batch={batch + 1} does not fit.*\n.*at most {batch} "):
        estimate_serving(V3, replica, MIX, batch + 1)


def test_what_does_not_fit_says_by_how_much_and_what_would() -> None:
    with pytest.raises(
        ConfigError, match=r"does not fit on .* in bf16.* exceed the usable memory by .* GB\n  It fits on n=32 tp=2"
    ):
        estimate_serving(V3, replace(ONE, n=8), MIX)
    with pytest.raises(ConfigError, match=r"no replica of NVIDIA RTX 4090 can hold .* more than the usable"):
        smallest_replica(QWEN, replace(ONE, device=device("rtx4090")), AverageRequest(10**9, 1, 0))
    with pytest.raises(ConfigError, match=r"tp=3 does not divide n=8.*\n.*Use tp=2, the nearest valid value"):
        estimate_serving(QWEN, replace(ONE, n=8, tp=3), MIX)
    with pytest.raises(ConfigError, match="does not support fp8"):
        estimate_serving(QWEN, Replica(device("a100"), 1, 1, "fp8"), MIX)


def test_the_margin_is_over_the_rent_of_exactly_the_time_used() -> None:
    replica = replace(ONE, n=144, dtype="fp8")
    served = estimate_serving(V3, replica, MIX)
    assert served.prefill_rate == prefill_rate(V3, replica, MIX.prompt, MIX.hit_rate)
    assert MIX.hit_rate and served.prefill_rate < prefill_rate(V3, replica, MIX.prompt), (
        "also cached tokens are attended to"
    )
    at_cost, dear = token_prices(served, 2.0, 0.0), token_prices(served, 2.0, 0.5)
    hour = at_cost.cost_usd(hit=0, miss=served.prefill_rate * 3600, output=0)
    assert hour == pytest.approx(2.0)
    assert at_cost.cost_usd(hit=0, miss=0, output=served.decode_rate * 3600) == pytest.approx(2.0)
    assert dear.miss == pytest.approx(1.5 * at_cost.miss) and dear.output == pytest.approx(1.5 * at_cost.output)


@given(st.floats(0, 1), st.integers(1, 10**6), st.integers(0, 10**6))
def test_a_mix_costs_between_its_cheapest_and_its_dearest_token(rate: float, prompt: int, reply: int) -> None:
    row = price("deepseek-r1")
    assert row.hit * (1 - 1e-9) <= row.blended_price(prompt, reply, rate) <= row.output * (1 + 1e-9)


def test_every_row_of_prices_has_a_date_and_a_source() -> None:
    for row in PRICES:
        assert 0 < row.hit < row.miss < row.output and row.date >= "2025-01" and row.source
    with pytest.raises(ConfigError, match="unknown price 'deepseek-r2'"):
        price("deepseek-r2")
