"""The planner reproduces what was published: each figure from its inputs, within the tolerance that its row states.

Sources are in the rows: DeepSeek-V3's report (2412.19437), ISCA 2025 (2505.09343), Llama 3 (2407.21783), and DeepSeek's own account
of a day of serving. The published figures are written here again, so that no row can be bent to ours.
"""

from __future__ import annotations

import pytest

from rorqual.model.account import account
from rorqual.model.presets import preset
from rorqual.plan.hardware import REACHED, device
from rorqual.plan.published import (
    DAY_HIT,
    DAY_KEYS,
    DAY_MISS,
    DAY_NODE_IN,
    DAY_NODE_OUT,
    DAY_SPEED,
    LLAMA_HOURS,
    QUOTES,
    FigureComparison,
    compare_figures,
    reached_peak_share,
)
from rorqual.plan.serve import DAY_DECODE, DAY_PREFILL, Replica, decode_step, prefill_rate

FIGURES = {figure.name: figure for figure in compare_figures()}
PUBLISHED = {
    "DeepSeek-V3, pretraining, H800-hours": (2.664e6, 0.01),
    "DeepSeek-V3, TFLOPS per card in pretraining": (385, 0.01),
    "DeepSeek-V3, H800-hours per trillion tokens": (180e3, 0.01),
    "DeepSeek-V3, all training, H800-hours": (2.788e6, 0.01),
    "DeepSeek-V3, days on 2,048 cards": (57, 0.01),
    "DeepSeek-V3, all training, USD": (5.576e6, 0.01),
    "Llama-3.1-405B, FLOPs": (3.8e25, 0.05),
    "Llama-3.1-405B, H100-hours": (30.84e6, 0.15),
    "Llama-3.1-405B, USD": (60e6, 0.05),
    "Llama-3.1-70B, H100-hours": (7.0e6, 0.32),
    "Llama-3.1-8B, H100-hours": (1.46e6, 0.63),
    "DeepSeek-V3, training GFLOPs per token": (250, 0.01),
    "DeepSeek-V3, cache bytes per token": (70272, 0),
    "Qwen2.5-72B, cache bytes per token": (327680, 0),
    "Llama-3.1-405B, cache bytes per token": (516096, 0),
    "A day of serving, revenue at R1's prices, USD": (562027, 0.001),
    "A day of serving, cost, USD": (87072, 0),
    "A day of serving, margin": (5.45, 0.005),
    "A day of serving, machines": (226.75, 0.005),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_figure_is_reproduced(name: str) -> None:
    published, tolerance = PUBLISHED[name]
    figure = FIGURES[name]
    assert figure.published == published
    assert abs(figure.ours / published - 1) <= tolerance


@pytest.mark.parametrize("figure", FIGURES.values(), ids=lambda figure: figure.name)
def test_every_row_holds_and_says_why_where_it_does_not_follow(figure: FigureComparison) -> None:
    assert abs(figure.difference) <= figure.tolerance and figure.source and figure.how
    assert figure.why or abs(figure.difference) < 0.01


def test_it_is_386_tflops_that_the_published_hours_make() -> None:
    assert FIGURES["DeepSeek-V3, TFLOPS per card in pretraining"].ours == pytest.approx(386.5, abs=0.1)


def test_the_models_beside_v3_have_their_published_sizes() -> None:
    assert account(preset("qwen2.5-72b")).total == pytest.approx(72.7e9, rel=1e-3)
    assert account(preset("llama-3.1-405b")).total == pytest.approx(405.85e9, rel=1e-3)


def test_a_serving_plan_is_calibrated_on_the_day_that_was_published() -> None:
    """Prefill ran on 32 cards and decode on 144, in fp8, with attention replicated on each card. Decode produced 21 tokens per second per
    user (20 to 22 are published) and 14.8k tokens per second per machine, so 88 sequences per card, which attend to 4,989 keys."""
    model, card, hit_rate = preset("deepseek-v3"), device("h800"), DAY_HIT / (DAY_HIT + DAY_MISS)
    prefill = prefill_rate(model, Replica(card, 32, 1, "fp8", prefill_used=1.0), DAY_KEYS, hit_rate)
    batch = DAY_NODE_OUT / card.node / DAY_SPEED
    step = decode_step(model, Replica(card, 144, 1, "fp8", decode_used=1.0), batch, DAY_KEYS)
    assert round(DAY_NODE_IN / card.node * (1 - hit_rate) / prefill, 2) == DAY_PREFILL
    assert round(step.seconds * DAY_SPEED, 2) == DAY_DECODE


def test_what_whole_trainings_reached_is_derived_from_their_hours() -> None:
    assert {name: round(reached_peak_share(name), 2) for name in LLAMA_HOURS} == REACHED
    # 6 x parameters x tokens, and causal attention over rows of 8,192 in 80 layers of 8,192: 70.55B parameters of matrices and head.
    each = 6 * (account(preset("llama-3.1-70b")).total - 128256 * 8192) + 6 * 80 * 8192 * 8193
    assert reached_peak_share("Llama-3.1-70B") == pytest.approx(each * 15e12 / (7.0e6 * 3600 * 989.4e12), rel=0.01)


def test_what_is_only_quoted_says_what_it_counts() -> None:
    assert {quote.usd for quote in QUOTES} == {100e6, 1.3e9}
    assert all(quote.counts and quote.source for quote in QUOTES)
