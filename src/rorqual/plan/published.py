"""Compare published figures with the planner's estimates from the same inputs, to check the published figures and the
planner.

Each comparison gives the published figure, its source, the computation and the tolerance. If the published figure and the
estimate differ for a known reason, the comparison states the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from rorqual.model.account import account
from rorqual.model.config import ModelConfig
from rorqual.model.presets import preset
from rorqual.plan.hardware import device
from rorqual.plan.price import price
from rorqual.plan.time import training_cost, training_flops

V3_REPORT = "DeepSeek-V3 report, 2412.19437, table 1"
ISCA = "Insights into DeepSeek-V3, ISCA 2025, 2505.09343"
LLAMA = "The Llama 3 Herd of Models, 2407.21783, and its model card"
DAY = "DeepSeek, open-infra-index, 202502OpenSourceWeek, day 6"
STORY = "as commonly told"
V3_TOKENS, V3_CARDS, V3_USED, V3_RENT = 14.8e12, 2048, 0.3894, 2.0
V3_PRETRAINING, V3_EXTENSION, V3_AFTER = 2.664e6, 119e3, 5e3
"""H800-hours of DeepSeek-V3's pretraining, context extension and post-training (technical report, table 1)."""
LLAMA_TOKENS, LLAMA_CARDS, LLAMA_FLOPS = 15.6e12, 16384, 400e12
"""Llama 3.1 405B's number of training tokens, number of H100s, and FLOP/s per H100.

The number of H100s and the FLOP/s apply to the part of the training with rows of 8,192 tokens, which is most of the training
(table 4).
"""
LLAMA_HOURS = {
    "Llama-3.1-405B": (LLAMA_TOKENS, 30.84e6),
    "Llama-3.1-70B": (15e12, 7.0e6),
    "Llama-3.1-8B": (15e12, 1.46e6),
}
"""(training tokens, H100-hours) of each Llama 3.1 model, from the model card. The model card gives "15T+" training tokens for
the two smaller models."""
DAY_HIT, DAY_MISS, DAY_REPLY = 342e9, 266e9, 168e9
DAY_NODES, DAY_NODE_IN, DAY_NODE_OUT, DAY_KEYS, DAY_SPEED = 226.75, 73.7e3, 14.8e3, 4989, 21.0


@dataclass(frozen=True)
class FigureComparison:
    """A published figure and the planner's estimate of the figure.

    `tolerance` is the allowed relative difference between the two figures. `form` is the format string for `published` and
    `ours`.
    """

    name: str
    published: float
    ours: float
    tolerance: float
    how: str
    source: str
    why: str = ""
    form: str = "{:,.0f}"

    @property
    def difference(self) -> float:
        """The relative difference of the planner's estimate from the published figure."""
        return self.ours / self.published - 1


@dataclass(frozen=True)
class UncomputableFigure:
    """A published figure that cannot be computed from public information. `counts` states what the published figure
    includes."""

    name: str
    usd: float
    counts: str
    source: str


QUOTES = (
    UncomputableFigure("GPT-4", 100e6,
          "Training. Asked if it cost $100 million, OpenAI's chief executive answered \"more than that\". He did not say what the "
          "figure includes.", "Wired, 17 April 2023"),
    UncomputableFigure("DeepSeek, all spending", 1.3e9,
          "An outsider's estimate of the purchase price of its servers, often repeated as all spending on research, hardware and staff. It "
          "is the total of a table whose sum omits one of its columns. The same article's text gives $1.6 billion for servers and $944 "
          "million to run them. It is not the cost of a model, and V3's $5.576 million is not the cost of a company: it covers the final "
          "training, without research, trials or data.", "SemiAnalysis, 31 January 2025"),
)  # fmt: skip


def compare_figures() -> list[FigureComparison]:
    """Return all comparisons of published figures, beginning with training runs."""
    return [*_v3_training_figures(), *_llama_training_figures(), *_per_token_figures(), *_serving_day_figures()]


def _v3_training_figures() -> list[FigureComparison]:
    model, card = preset("deepseek-v3"), device("h800")
    flops_per_token = training_flops(model, 4096)
    cost = training_cost(
        flops_per_token, V3_TOKENS, n=V3_CARDS, peak=card.flops("bf16"), utilisation=V3_USED, price=V3_RENT
    )
    hours = cost.hours + V3_EXTENSION + V3_AFTER
    long = sum(1000 * rows * row * training_flops(model, row) for rows, row in ((1920, 32768), (480, 131072)))
    reached = card.flops("bf16") * V3_USED
    assumed = f"14.8T tokens x {flops_per_token / 1e9:.1f} GFLOPs (causal, rows of 4,096, no MTP) at 38.94 % of the bf16 peak ({ISCA}, table 4)"
    total = f"our pretraining, plus the published {V3_EXTENSION:,.0f} for context extension and {V3_AFTER:,.0f} for post-training"
    return [
        FigureComparison("DeepSeek-V3, pretraining, H800-hours", V3_PRETRAINING, cost.hours, 0.01, assumed, V3_REPORT,
               "This combines two sources: hours from one, utilisation from the other."),
        FigureComparison("DeepSeek-V3, TFLOPS per card in pretraining", 385, flops_per_token * V3_TOKENS / V3_PRETRAINING / 3600e12, 0.01,
               "FLOPs divided by the published hours", f"{ISCA}, table 4", form="{:.1f}"),
        FigureComparison("DeepSeek-V3, H800-hours per trillion tokens", 180e3, cost.hours / V3_TOKENS * 1e12, 0.01, assumed, V3_REPORT),
        FigureComparison("DeepSeek-V3, context extension, H800-hours", V3_EXTENSION, long / reached / 3600, 0.4,
               "1,000 steps of 1,920 rows of 32K and of 480 rows of 128K, at the same 38.94 %", V3_REPORT,
               f"The estimate does not reproduce the figure: with long rows a card reached {long / V3_EXTENSION / 3600e12:.0f} TFLOPS, not "
               f"{reached / 1e12:.0f}. Batch and parallelism differed, and their speed is not published."),
        FigureComparison("DeepSeek-V3, all training, H800-hours", 2.788e6, hours, 0.01, total, V3_REPORT),
        FigureComparison("DeepSeek-V3, days on 2,048 cards", 57, hours / V3_CARDS / 24, 0.01, total, STORY,
               f"The report's hours are {2.788e6 / V3_CARDS / 24:.1f} days, {V3_PRETRAINING / V3_CARDS / 24:.1f} of them for pretraining. 57 is "
               "the total rounded up.", form="{:.1f}"),
        FigureComparison("DeepSeek-V3, all training, USD", 5.576e6, hours * V3_RENT, 0.01, "the same hours at $2", V3_REPORT,
               "The report assumes this rent, and excludes earlier research and trials.", form="${:,.0f}"),
    ]  # fmt: skip


def _llama_training_figures() -> list[FigureComparison]:
    flops_per_token = training_flops(preset("llama-3.1-405b"), 8192)
    cost = training_cost(flops_per_token, LLAMA_TOKENS, n=LLAMA_CARDS, peak=LLAMA_FLOPS, utilisation=1.0, price=2.0)
    return [
        FigureComparison("Llama-3.1-405B, FLOPs", 3.8e25, flops_per_token * LLAMA_TOKENS, 0.05,
               f"15.6T tokens x {flops_per_token / 1e9:,.0f} GFLOPs (causal, rows of 8,192)", LLAMA,
               "The published figure is 6 x parameters x tokens, without attention.", form="{:.3g}"),
        FigureComparison("Llama-3.1-405B, H100-hours", 30.84e6, cost.hours, 0.15, "the same at 400 TFLOPS, 41 % (table 4: 430 to 380)", LLAMA,
               "The estimate covers only training steps, which the paper puts at more than 90 % of the time. The published hours also "
               "include all other time, the 128K stage and post-training.", form="{:,.0f}"),
        *(_whole_training(name, tokens, hours) for name, (tokens, hours) in LLAMA_HOURS.items() if "405B" not in name),
        FigureComparison("Llama-3.1-405B, USD", 60e6, 30.84e6 * 2.0, 0.05, "the published hours at $2", STORY,
               "No price was published; $2 per hour is the rent that V3's report assumes.", form="${:,.0f}"),
    ]  # fmt: skip


def _whole_training(name: str, tokens: float, hours: float) -> FigureComparison:
    """Compare the published total hours of a training run with the estimate at V3's utilisation."""
    flops_per_token, card = training_flops(preset(name.lower()), 8192), device("h100")
    cost = training_cost(flops_per_token, tokens, n=1, peak=card.flops("bf16"), utilisation=V3_USED, price=2.0)
    why = (
        f"The estimate does not reproduce the figure: the hours imply {reached_peak_share(name):.0%} of the peak. "
        "The speed of the steps and the other contents of the hours are not published. "
        "`rorqual plan` shows how much longer than its estimate a training may take."
    )
    return FigureComparison(
        f"{name}, H100-hours",
        hours,
        cost.hours,
        0.65,
        f"15T tokens x {flops_per_token / 1e9:,.0f} GFLOPs at 38.94 %",
        LLAMA,
        why,
    )


def reached_peak_share(name: str) -> float:
    """Return the share of the H100's bf16 peak FLOP/s that a whole Llama 3.1 training run reached, according to the published
    hours of the run."""
    tokens, hours = LLAMA_HOURS[name]
    return training_flops(preset(name.lower()), 8192) * tokens / (hours * 3600 * device("h100").flops("bf16"))


def _per_token_figures() -> list[FigureComparison]:
    rows = []
    models = (("DeepSeek-V3", preset("deepseek-v3"), 250, 70272), ("Qwen2.5-72B", preset("qwen2.5-72b"), 394, 327680),
              ("Llama-3.1-405B", preset("llama-3.1-405b"), 2448, 516096))  # fmt: skip
    for name, model, gflops, _ in models:
        ours = training_flops(model, 4096) / 1e9
        rows.append(FigureComparison(f"{name}, training GFLOPs per token", gflops, ours, 0.15, "forward x 3, causal, rows of 4,096",
                            f"{ISCA}, table 2", _explain_token_difference(model, gflops), form="{:,.1f}"))  # fmt: skip
    for name, model, _, size in models:
        rows.append(FigureComparison(f"{name}, cache bytes per token", size, account(model).cache_bytes, 0.0, "bf16, all layers",
                            f"{ISCA}, table 1"))  # fmt: skip
    return rows


def _explain_token_difference(model: ModelConfig, gflops: float) -> str:
    matrices, with_attention = (training_flops(model, row) / 1e9 for row in (1, 4096))
    if abs(with_attention / gflops - 1) < 0.01:
        return ""
    if gflops < matrices:
        return (
            f"The published figure is below the {matrices:,.1f} that the matrices alone need at 6 FLOPs per parameter."
        )
    return f"The matrices alone need {matrices:,.1f}; the row length of the published figure is not given."


def _serving_day_figures() -> list[FigureComparison]:
    r1 = price("deepseek-r1")
    revenue, cost = r1.cost_usd(hit=DAY_HIT, miss=DAY_MISS, output=DAY_REPLY), DAY_NODES * 8 * 24 * V3_RENT
    nodes = (DAY_HIT + DAY_MISS) / 86400 / DAY_NODE_IN + DAY_REPLY / 86400 / DAY_NODE_OUT
    return [
        FigureComparison("A day of serving, revenue at R1's prices, USD", 562027, revenue, 0.001,
               "342B cached and 266B other prompt tokens, 168B reply tokens", DAY, "Token counts are published in whole billions.",
               form="${:,.0f}"),
        FigureComparison("A day of serving, cost, USD", 87072, cost, 0.0, "226.75 machines x 8 cards x 24 hours x $2", DAY, form="${:,.0f}"),
        FigureComparison("A day of serving, margin", 5.45, revenue / cost - 1, 0.005, "from the two above", DAY,
               "The source calls it theoretical: V3 was cheaper, much use was free, and nights were discounted.", form="{:.1%}"),
        FigureComparison("A day of serving, machines", DAY_NODES, nodes, 0.005,
               "tokens divided by 73.7k in and 14.8k out per second and machine", DAY,
               "Prefill and decode machines add up to the total.", form="{:.2f}"),
    ]  # fmt: skip
