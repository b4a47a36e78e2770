"""The report's section on cost: a table of all stages."""

from __future__ import annotations

from collections.abc import Mapping

from rorqual.evals import page
from rorqual.evals.plots_cost import CLOCK_PICTURE
from rorqual.evals.reading import Findings, StageCost


def cost(findings: Findings, figures: Mapping[str, str]) -> list[str]:
    """Return HTML: pictures of tokens, FLOPs and measured time, the table of stages, and the assumed price of a core-hour."""
    stages, price = findings.summary.stages, findings.summary.core_hour
    names = ("tokens", "flops", "solved", "core_seconds", "seconds")
    total = StageCost(name="all", **{name: sum(getattr(s, name) for s in stages) for name in names})
    heads = [
        "stage",
        "tokens",
        "FLOPs",
        "core-seconds",
        "seconds",
        "US cents",
        "solved",
        "US\u00a0$ per million solved",
    ]
    rows = [_row(stage, price) for stage in (*stages, total)]
    text = (
        f"Money assumes US $ {price:g} per core-hour. Solved counts the right answers of a stage: GRPO rollouts, teacher samples, "
        "evaluations. The seconds add up to the wall-clock time of the whole run, without drawing this page. The stage unaccounted "
        "covers the time between stages, such as starting up."
    )
    parts = [
        figures["cost"],
        figures[CLOCK_PICTURE],
        page.table("cost by stage", heads, [("", rows)]),
        page.para(text, "note"),
    ]
    again = sum(max(0.0, s.spent_tokens - s.tokens) for s in stages)
    if again > 0:
        parts.append(
            page.para(
                f"After interruptions, {again:,.0f} tokens were processed again; the table includes their time.", "note"
            )
        )
    return parts


def _row(stage: StageCost, price: float) -> list[str]:
    money = stage.money(price)
    solved = [f"{stage.solved:,.0f}", f"{1e6 * money / stage.solved:,.2f}"] if stage.solved else ["", ""]
    return [
        stage.name,
        f"{stage.tokens:,.0f}",
        scientific(stage.flops),
        f"{stage.core_seconds:,.1f}",
        f"{stage.seconds:,.1f}",
        f"{100 * money:,.3f}",
        *solved,
    ]


def scientific(value: float) -> str:
    """Return `1234567.0` as `1.23 × 10⁶`."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × 10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
