"""Published figures beside what this planner makes of the same inputs: the check on its arithmetic, and on theirs.

Each row names what was published and where, what is computed and from what, how near the two should be, and, where one does not
follow from the other exactly, why.
"""

from __future__ import annotations

from dataclasses import dataclass

from rorqual.model.account import account
from rorqual.model.config import ModelConfig
from rorqual.model.presets import preset
from rorqual.plan.hardware import device
from rorqual.plan.price import price
from rorqual.plan.serve import Replica, decode_step, prefill_rate
from rorqual.plan.time import training_cost, training_flops

V3_REPORT = "DeepSeek-V3 report, 2412.19437, table 1"
ISCA = "Insights into DeepSeek-V3, ISCA 2025, 2505.09343"
LLAMA = "The Llama 3 Herd of Models, 2407.21783, and its model card"
DAY = "DeepSeek, open-infra-index, 202502OpenSourceWeek, day 6"
STORY = "as commonly told"
V3_TOKENS, V3_CARDS, V3_USED, V3_RENT = 14.8e12, 2048, 0.3894, 2.0
V3_PRETRAINING, V3_EXTENSION, V3_AFTER = 2.664e6, 119e3, 5e3
"""H800-hours of the three stages in the report's table 1."""
LLAMA_TOKENS, LLAMA_CARDS, LLAMA_FLOPS = 15.6e12, 16384, 400e12
"""FLOP/s: of a card, on the cards and at the row length (8,192) that most of the training used (table 4)."""
LLAMA_HOURS = {
    "Llama-3.1-405B": (LLAMA_TOKENS, 30.84e6),
    "Llama-3.1-70B": (15e12, 7.0e6),
    "Llama-3.1-8B": (15e12, 1.46e6),
}
"""Tokens and H100-hours of the model card; of the smaller two it says "15T+" tokens."""
DAY_HIT, DAY_MISS, DAY_REPLY = 342e9, 266e9, 168e9
DAY_NODES, DAY_NODE_IN, DAY_NODE_OUT, DAY_KEYS, DAY_SPEED = 226.75, 73.7e3, 14.8e3, 4989, 21.0


@dataclass(frozen=True)
class Figure:
    """`tolerance`: how far ours may be from the published one, relative. `form` writes both."""

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
        """Relative."""
        return self.ours / self.published - 1

    @property
    def holds(self) -> bool:
        return abs(self.difference) <= self.tolerance


@dataclass(frozen=True)
class Quote:
    """A figure that nobody outside can compute; `counts` says what it is a figure of."""

    name: str
    usd: float
    counts: str
    source: str


QUOTES = (
    Quote("GPT-4", 100e6,
          "Training, as OpenAI's chief executive answered (\"more than that\") when asked whether it cost $100 million; what he counted was "
          "not said.", "Wired, 17 April 2023"),
    Quote("DeepSeek, all spending", 1.3e9,
          "An outsider's estimate of what its servers cost to buy, often retold as all that it spent on research, hardware and staff. It is "
          "the total of a table whose sum leaves out one of its columns; the text of the same article says $1.6 billion for servers and $944 "
          "million to run them. It is not the cost of a model, and V3's $5.576 million is not the cost of a company: that counts the final "
          "training, and no research, trials or data.", "SemiAnalysis, 31 January 2025"),
)  # fmt: skip


def figures() -> list[Figure]:
    """All of them, trainings first."""
    return [*_v3(), *_llama(), *_tokens(), *_day()]


def _v3() -> list[Figure]:
    model, card = preset("deepseek-v3"), device("h800")
    each = training_flops(model, 4096)
    cost = training_cost(each, V3_TOKENS, n=V3_CARDS, peak=card.flops("bf16"), utilisation=V3_USED, price=V3_RENT)
    hours = cost.hours + V3_EXTENSION + V3_AFTER
    long = sum(1000 * rows * row * training_flops(model, row) for rows, row in ((1920, 32768), (480, 131072)))
    reached = card.flops("bf16") * V3_USED
    assumed = f"14.8T tokens x {each / 1e9:.1f} GFLOPs (causal, rows of 4,096, no MTP) at 38.94 % of the bf16 peak ({ISCA}, table 4)"
    total = f"ours of pretraining, {V3_EXTENSION:,.0f} of context extension and {V3_AFTER:,.0f} after it as published"
    return [
        Figure("DeepSeek-V3, pretraining, H800-hours", V3_PRETRAINING, cost.hours, 0.01, assumed, V3_REPORT,
               "Two sources meet: hours of the one, utilisation of the other."),
        Figure("DeepSeek-V3, TFLOPS of a card in pretraining", 385, each * V3_TOKENS / V3_PRETRAINING / 3600e12, 0.01,
               "FLOPs over the published hours", f"{ISCA}, table 4", form="{:.1f}"),
        Figure("DeepSeek-V3, H800-hours a trillion tokens", 180e3, cost.hours / V3_TOKENS * 1e12, 0.01, assumed, V3_REPORT),
        Figure("DeepSeek-V3, context extension, H800-hours", V3_EXTENSION, long / reached / 3600, 0.4,
               "1,000 steps of 1,920 rows of 32K and of 480 rows of 128K, at the same 38.94 %", V3_REPORT,
               f"It does not follow: at long rows a card did {long / V3_EXTENSION / 3600e12:.0f} TFLOPS rather than "
               f"{reached / 1e12:.0f}. The batch and the parallelism were others, and nothing is published about their speed."),
        Figure("DeepSeek-V3, all training, H800-hours", 2.788e6, hours, 0.01, total, V3_REPORT),
        Figure("DeepSeek-V3, days on 2,048 cards", 57, hours / V3_CARDS / 24, 0.01, total, STORY,
               f"The report's own hours are {2.788e6 / V3_CARDS / 24:.1f} days, {V3_PRETRAINING / V3_CARDS / 24:.1f} of them pretraining; 57 is "
               "that, rounded up.", form="{:.1f}"),
        Figure("DeepSeek-V3, all training, USD", 5.576e6, hours * V3_RENT, 0.01, "the same hours at $2", V3_REPORT,
               "The rent is the report's assumption; research and trials before are not in it, it says.", form="${:,.0f}"),
    ]  # fmt: skip


def _llama() -> list[Figure]:
    each = training_flops(preset("llama-3.1-405b"), 8192)
    cost = training_cost(each, LLAMA_TOKENS, n=LLAMA_CARDS, peak=LLAMA_FLOPS, utilisation=1.0, price=2.0)
    return [
        Figure("Llama-3.1-405B, FLOPs", 3.8e25, each * LLAMA_TOKENS, 0.05,
               f"15.6T tokens x {each / 1e9:,.0f} GFLOPs (causal, rows of 8,192)", LLAMA,
               "The published figure is 6 x parameters x tokens, without attention.", form="{:.3g}"),
        Figure("Llama-3.1-405B, H100-hours", 30.84e6, cost.hours, 0.15, "the same at 400 TFLOPS, 41 % (table 4: 430 to 380)", LLAMA,
               "Ours is the time of the steps. The paper says that more than 90 % of the time went into them; the rest, the 128K stage and what "
               "came after pretraining are in the published hours.", form="{:,.0f}"),
        *(_whole_training(name, tokens, hours) for name, (tokens, hours) in LLAMA_HOURS.items() if "405B" not in name),
        Figure("Llama-3.1-405B, USD", 60e6, 30.84e6 * 2.0, 0.05, "the published hours at $2", STORY,
               "Nobody published a price; $2 an hour is the rent that V3's report assumes.", form="${:,.0f}"),
    ]  # fmt: skip


def _whole_training(name: str, tokens: float, hours: float) -> Figure:
    """The hours of a training at V3's share, where only their sum is published."""
    each, card = training_flops(preset(name.lower()), 8192), device("h100")
    cost = training_cost(each, tokens, n=1, peak=card.flops("bf16"), utilisation=V3_USED, price=2.0)
    why = (
        f"It does not follow: its hours are {reached(name):.0%} of the peak. Nothing is published about the speed of its steps, nor what "
        "else is in the hours; `rorqual plan` says how much more than its figure a training may take."
    )
    return Figure(
        f"{name}, H100-hours", hours, cost.hours, 0.65, f"15T tokens x {each / 1e9:,.0f} GFLOPs at 38.94 %", LLAMA, why
    )


def reached(name: str) -> float:
    """The share of the H100's bf16 peak by the published hours of a whole training of Llama 3.1."""
    tokens, hours = LLAMA_HOURS[name]
    return training_flops(preset(name.lower()), 8192) * tokens / (hours * 3600 * device("h100").flops("bf16"))


def _tokens() -> list[Figure]:
    found = []
    models = (("DeepSeek-V3", preset("deepseek-v3"), 250, 70272), ("Qwen2.5-72B", preset("qwen2.5-72b"), 394, 327680),
              ("Llama-3.1-405B", preset("llama-3.1-405b"), 2448, 516096))  # fmt: skip
    for name, model, gflops, _ in models:
        ours = training_flops(model, 4096) / 1e9
        found.append(Figure(f"{name}, GFLOPs to train on a token", gflops, ours, 0.15, "forward x 3, causal, rows of 4,096",
                            f"{ISCA}, table 2", _why_tokens(model, gflops), form="{:,.1f}"))  # fmt: skip
    for name, model, _, size in models:
        found.append(Figure(f"{name}, bytes of cache a token", size, account(model).cache_bytes, 0.0, "bf16, all layers",
                            f"{ISCA}, table 1"))  # fmt: skip
    return found


def _why_tokens(model: ModelConfig, gflops: float) -> str:
    matrices, whole = (training_flops(model, row) / 1e9 for row in (1, 4096))
    if abs(whole / gflops - 1) < 0.01:
        return ""
    if gflops < matrices:
        return f"It does not follow: the matrices alone, 6 FLOPs a parameter, are {matrices:,.1f}."
    return f"Matrices alone are {matrices:,.1f}; what row length the published figure has is not said."


def _day() -> list[Figure]:
    r1 = price("deepseek-r1")
    revenue, cost = r1.bill(hit=DAY_HIT, miss=DAY_MISS, output=DAY_REPLY), DAY_NODES * 8 * 24 * V3_RENT
    nodes = (DAY_HIT + DAY_MISS) / 86400 / DAY_NODE_IN + DAY_REPLY / 86400 / DAY_NODE_OUT
    return [
        Figure("A day of serving, revenue at R1's prices, USD", 562027, revenue, 0.001,
               "342B tokens hit, 266B missed, 168B of replies", DAY, "The tokens are published in whole billions.", form="${:,.0f}"),
        Figure("A day of serving, cost, USD", 87072, cost, 0.0, "226.75 machines x 8 cards x 24 hours x $2", DAY, form="${:,.0f}"),
        Figure("A day of serving, margin", 5.45, revenue / cost - 1, 0.005, "of the two above", DAY,
               "Theoretical, says the source: V3 was cheaper, much was free, and nights were discounted.", form="{:.1%}"),
        Figure("A day of serving, machines", DAY_NODES, nodes, 0.005, "tokens over 73.7k in and 14.8k out a second of a machine", DAY,
               "Machines that prefill and machines that decode add up to all of them.", form="{:.2f}"),
    ]  # fmt: skip


def shares_of_roofline() -> tuple[float, float]:
    """What the service of that day reached of this planner's roofline, prefill and decode: the defaults of a serving plan.

    Prefill on 32 cards, decode on 144, attention on each for itself, in fp8. A reader's 21 tokens a second (20 to 22 are published)
    and a machine's 14.8k give 88 sequences a card, of 4,989 keys in the mean.
    """
    model, card = preset("deepseek-v3"), device("h800")
    hit_rate = DAY_HIT / (DAY_HIT + DAY_MISS)
    prefill = Replica(card, 32, 1, "fp8", prefill_used=1.0)
    computed = DAY_NODE_IN / card.node * (1 - hit_rate)
    decode = Replica(card, 144, 1, "fp8", decode_used=1.0)
    batch = DAY_NODE_OUT / card.node / DAY_SPEED
    step = decode_step(model, decode, batch, DAY_KEYS)
    return computed / prefill_rate(model, prefill, DAY_KEYS, hit_rate), step.seconds * DAY_SPEED
