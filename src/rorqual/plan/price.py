"""The table of API prices in USD per million tokens, each with date and source. To add a price, add a row."""

from __future__ import annotations

from dataclasses import dataclass

from rorqual.core.errors import ConfigError, suggest_name

MILLION = 1e6


@dataclass(frozen=True)
class Price:
    """A price in USD per million tokens: of prompt tokens found in the cache (`hit`), of other prompt tokens (`miss`)
    and of reply tokens (`output`)."""

    name: str
    hit: float
    miss: float
    output: float
    date: str
    source: str

    def cost_usd(self, *, hit: float, miss: float, output: float) -> float:
        """Return the cost in USD of `hit` cached prompt tokens, `miss` other prompt tokens and `output` reply tokens."""
        return (hit * self.hit + miss * self.miss + output * self.output) / MILLION

    def blended_price(self, prompt: float, reply: float, hit_rate: float) -> float:
        """Return the mean price in USD per million tokens of prompt and reply, if the share `hit_rate` of the prompt tokens
        is in the cache."""
        bill = self.cost_usd(hit=prompt * hit_rate, miss=prompt * (1 - hit_rate), output=reply)
        return bill / (prompt + reply) * MILLION


DOCS = "DeepSeek API documentation, models and pricing"
PRICES = (
    Price("deepseek-v3", 0.07, 0.27, 1.10, "2025-02", f"{DOCS}, deepseek-chat"),
    Price("deepseek-r1", 0.14, 0.55, 2.19, "2025-01", f"{DOCS}, deepseek-reasoner"),
    Price("deepseek-v3.2", 0.028, 0.28, 0.42, "2025-12", f"{DOCS}, deepseek-chat and -reasoner"),
    Price("deepseek-v4-flash", 0.0028, 0.14, 0.28, "2026-08", f"{DOCS}, V4-Flash-0731, until 16 August"),
    Price("deepseek-v4-pro", 0.003625, 0.435, 0.87, "2026-08", f"{DOCS}, V4-Pro-0813, until 16 August"),
    Price("deepseek-v4-pro-late", 0.022, 0.66, 1.98, "2026-10", f"{DOCS}, deepseek-v4-pro, off-peak; twice that at peak hours"),
    Price("deepseek-v4.1-flash", 0.003, 0.15, 0.60, "2026-10", f"{DOCS}, deepseek-flash, off-peak; twice that at peak hours"),
)  # fmt: skip


def price_names() -> tuple[str, ...]:
    """Return every name that the function `price` accepts."""
    return tuple(row.name for row in PRICES)


def price(name: str) -> Price:
    """Return the row of the price table called `name`. If no row has this name, raises ConfigError with the nearest name."""
    for row in PRICES:
        if row.name == name:
            return row
    raise ConfigError(f"unknown price '{name}'", where="price", remedy=suggest_name(name, price_names()))
