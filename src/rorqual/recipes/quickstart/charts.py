"""The charts of the quickstart's report, but for those of the student."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rorqual.core.records import Thinking
from rorqual.evals.evaluation import Evaluation, Row
from rorqual.recipes.quickstart.findings import Findings, Record, StageCost, series
from rorqual.report.chart import Chart, Colour, Panel, Series

SETTINGS: tuple[tuple[str, Thinking, str, Colour], ...] = (
    ("before", "auto", "before GRPO, own choice", "before"),
    ("before", "on", "before GRPO, made to think", "on"),
    ("after", "auto", "after GRPO, own choice", "after"),
    ("after", "off", "after GRPO, answering at once", "off"),
    ("after", "on", "after GRPO, made to think", "on"),
)
"""The thinking modes before and after GRPO that the report compares. Those before GRPO have hollow markers."""
CLOCK_CHART = "clock"
"""Name prefix of charts that show measured time. Only these charts differ between two runs with the same seed."""


def charts(findings: Findings) -> list[Chart]:
    """Return the charts of the model. A model without routed experts has no charts of experts."""
    return [
        overview_chart(findings),
        learning_chart(findings),
        accuracy_chart(findings),
        levels_chart(findings),
        changes_chart(findings),
        thinking_chart(findings),
        *([experts_chart(findings), load_chart(findings)] if findings.experts.layers else []),
        *cost_charts(findings.summary.stages),
    ]


def rows_by_family(evaluation: Evaluation) -> dict[str, Row]:
    """Return the rows of the families."""
    return {row.family: row for row in evaluation.rows("family")}


def curves_panel(
    title: str,
    curves: Sequence[tuple[str, Colour, list[tuple[float, float]]]],
    *,
    y: str = "",
    percent: bool = False,
    limits: tuple[float, float] | None = None,
) -> Panel:
    """Return a panel of smoothed curves over the steps. Each item of `curves` is (label, colour, points)."""
    drawn = [
        Series(label=label, style="smooth", colour=colour, points=points) for label, colour, points in curves if points
    ]
    return Panel(title=title, x="step", y=y, percent=percent, limits=limits, series=drawn)


def ends(records: Sequence[Record], *names: str) -> str:
    """Return a phrase with the means of the first and the last twentieth of a metric."""
    values = [value for _, value in series(records, *names)]
    if not values:
        return "not recorded"
    edge = max(1, len(values) // 20)
    return f"{np.mean(values[:edge]):.3g} at first to {np.mean(values[-edge:]):.3g} at last"


def learning_chart(findings: Findings) -> Chart:
    """Chart the SFT loss and the GRPO reward over steps."""
    sft, loss, reward = findings.sft, ("loss/next_token", "loss"), series(findings.grpo, "reward")
    losses: list[tuple[str, Colour, list[tuple[float, float]]]] = [
        ("next token", "after", series(sft, *loss)),
        ("token after it (MTP)", "off", series(sft, "loss/mtp")),
    ]
    return Chart(
        name="learning-curves",
        panels=(
            curves_panel("Worked solutions: loss", losses, y="nats per token"),
            curves_panel("GRPO: reward of rollouts", [("", "after", reward)], y="mean reward", limits=(0, 1)),
        ),
        alt=f"Two learning curves. Fine-tuning loss went from {ends(sft, *loss)}; GRPO reward went from {ends(findings.grpo, 'reward')}.",
        caption="Faint lines: each step. Strong lines: a running mean over a twentieth of the run.",
    )


def settings_series(tables: Sequence[Sequence[Row]]) -> list[Series]:
    """Return one series per setting, with 95 % intervals, and the best baseline."""
    found = [
        Series(
            label=label,
            style="points",
            colour=colour,
            hollow=when == "before",
            points=[(place, row.accuracy) for place, row in enumerate(rows)],
            low=[row.interval.low for row in rows],
            high=[row.interval.high for row in rows],
        )
        for (when, _, label, colour), rows in zip(SETTINGS, tables, strict=True)
    ]
    best = [(place, row.best[1]) for place, row in enumerate(tables[1])]
    return [*found, Series(label="best baseline", style="points", colour="ink", hollow=True, points=best)]


def accuracy_chart(findings: Findings) -> Chart:
    """Chart held-out accuracy by family in all settings."""
    families = findings.families
    tables = [rows_by_family(findings.evaluations[when, mode]) for when, mode, _, _ in SETTINGS]
    changes = "; ".join(
        f"{f} {tables[0][f].accuracy:.0%} to {tables[2][f].accuracy:.0%} (before GRPO, made to think: {tables[1][f].accuracy:.0%})"
        for f in families
    )
    return Chart(
        name="accuracy",
        kind="points",
        flip=True,
        percent=True,
        labels=families,
        height=0.9 + 0.62 * len(families),
        series=settings_series([[table[family] for family in families] for table in tables]),
        alt=f"Held-out accuracy per family before and after GRPO, by the model's own choice: {changes}.",
        caption="Accuracy on held-out problems, with 95 % Wilson intervals. All settings use the same problems.",
    )


def levels_chart(findings: Findings) -> Chart:
    """Chart held-out accuracy by level, one panel per family."""
    tables = [findings.evaluations[when, mode].rows("level") for when, mode, _, _ in SETTINGS]
    return Chart(
        name="accuracy-by-level",
        height=2.2,
        panels=[_levels_panel(family, tables) for family in findings.families],
        alt="One panel per family: accuracy at each level of difficulty in five settings, and the best baseline.",
        caption="The same answers by level of difficulty, with 95 % intervals.",
    )


def _levels_panel(family: str, tables: Sequence[Sequence[Row]]) -> Panel:
    levels = [row.level for row in tables[0] if row.family == family]
    by_level = [{row.level: row for row in table if row.family == family} for table in tables]
    rows = [[table[level] for level in levels] for table in by_level]
    return Panel(title=family, labels=levels, percent=True, limits=(-0.03, 1.03), series=settings_series(rows))


def changes_chart(findings: Findings) -> Chart:
    """Chart three values before and after GRPO: how often the model thinks, how long it thinks, and its accuracy when it
    is made to think."""
    families = findings.families
    auto = {when: rows_by_family(findings.evaluations[when, "auto"]) for when in ("before", "after")}
    forced = {when: rows_by_family(findings.evaluations[when, "on"]) for when in ("before", "after")}
    measures = (
        ("How often it thinks", {w: [auto[w][f].thought for f in families] for w in auto}),
        ("How long, in tokens", {w: [auto[w][f].thinking_length for f in families] for w in auto}),
        ("Accuracy, made to think", {w: [forced[w][f].accuracy for f in families] for w in forced}),
    )
    changes = "; ".join(
        f"{f}: share that thinks {auto['before'][f].thought:.0%} to {auto['after'][f].thought:.0%}, accuracy when made to think "
        f"{forced['before'][f].accuracy:.0%} to {forced['after'][f].accuracy:.0%}"
        for f in families
    )
    return Chart(
        name="what-changed",
        panels=[
            Panel(
                title=title,
                kind="points",
                flip=True,
                labels=families,
                percent="tokens" not in title,
                series=[
                    Series(label="before GRPO", colour="before", hollow=True, points=list(enumerate(values["before"]))),
                    Series(label="after GRPO", colour="after", points=list(enumerate(values["after"]))),
                ],
            )
            for title, values in measures
        ],
        alt=f"From before to after GRPO: {changes}.",
        caption="Before and after GRPO. Length is the mean over answers with thinking, by the model's own choice.",
    )


def thinking_chart(findings: Findings) -> Chart:
    """Chart the lengths of thinking and reply, and the share of rollouts that think, over GRPO steps."""
    grpo = findings.grpo
    lengths: list[tuple[str, Colour, list[tuple[float, float]]]] = [
        ("thinking, of answers that think", "on", series(grpo, "think_length")),
        ("reply, of all answers", "after", series(grpo, "reply_length")),
    ]
    shares: list[tuple[str, Colour, list[tuple[float, float]]]] = [
        ("share that thinks", "after", series(grpo, "think_share")),
        ("right when thinking", "on", series(grpo, "right_when_thinking")),
    ]
    return Chart(
        name="thinking",
        panels=(
            curves_panel("Length", lengths, y="tokens"),
            curves_panel("Share that thinks, and its accuracy", shares, percent=True, limits=(0, 1.03)),
        ),
        alt=f"Over GRPO: length of thinking in tokens, {ends(grpo, 'think_length')}; length of replies, {ends(grpo, 'reply_length')}; "
        f"share of rollouts that think, {ends(grpo, 'think_share')}; accuracy of these, {ends(grpo, 'right_when_thinking')}.",
        caption="GRPO rollouts on training problems, step by step. Lengths are means, in tokens.",
    )


def experts_chart(findings: Findings) -> Chart:
    """Chart one heat map per MoE layer: how each family's tokens are distributed over the experts."""
    use = findings.experts
    most = max(max(row) for layer in use.share for row in layer)
    tops = [int(np.mean(layer, axis=0).argmax()) for layer in use.share]
    maps = [
        Panel(
            title=f"Layer {name}",
            kind="map",
            x="routed expert",
            limits=(0, most),
            series=[Series(label=f, points=list(enumerate(row))) for f, row in zip(use.families, layer, strict=True)],
        )
        for name, layer in zip(use.layers, use.share, strict=True)
    ]
    return Chart(
        name="experts",
        columns=2,
        panels=maps,
        alt=f"Heat maps, one for each of {len(use.layers)} mixture-of-experts layers. Rows are families, columns are experts, "
        f"shade is the share of the family's tokens. Most loaded expert by layer: {', '.join(map(str, tops))}.",
        caption="Share of each family's routed tokens that each expert serves. The router chooses for each token and layer: "
        "no expert belongs to one family.",
    )


def load_chart(findings: Findings) -> Chart:
    """Chart the load of each expert relative to the mean of its layer."""
    use = findings.experts
    relative = [np.asarray(row) / max(float(np.mean(row)), 1e-12) for row in use.load]  # [layers][experts]
    worst = max(float(row.max()) for row in relative)
    panels = [
        Panel(
            title=f"Layer {name}",
            kind="bars",
            x="routed expert",
            y="load / mean",
            limits=(0, 1.05 * worst),
            series=(
                Series(label="", points=list(enumerate(row))),
                Series(label="", style="dashed", colour="ink", points=((-0.5, 1), (len(row) - 0.5, 1))),
            ),
        )
        for name, row in zip(use.layers, relative, strict=True)
    ]
    return Chart(
        name="load",
        columns=4,
        height=1.9,
        panels=panels,
        alt=f"Bars, one panel per layer: load of each expert over the mean of its layer. The largest is {worst:.2f}.",
        caption="Tokens served by each expert, over the mean of its layer. Dashed line: equal load.",
    )


def cost_charts(stages: Sequence[StageCost]) -> list[Chart]:
    """Chart tokens and FLOPs by stage, and measured time by stage."""
    worked = [stage for stage in stages if stage.tokens]
    computed = "; ".join(f"{s.name} {s.tokens:.3g} tokens, {s.flops:.3g} FLOPs" for s in worked)
    return [
        Chart(
            name="cost",
            panels=(
                _stages_panel("Tokens, millions", worked, [f"{s.tokens / 1e6:.2f}" for s in worked]),
                _stages_panel("Floating-point operations, 10¹²", worked, [f"{s.flops / 1e12:.2f}" for s in worked]),
            ),
            alt=f"Bars by stage: {computed}.",
            caption="Tokens and FLOPs by stage. They follow from the recipe and do not depend on the machine.",
        ),
        Chart(
            name=CLOCK_CHART,
            panels=(
                _stages_panel("Core-seconds", stages, [f"{s.core_seconds:.0f}" for s in stages]),
                _stages_panel("Wall-clock seconds", stages, [f"{s.seconds:.0f}" for s in stages]),
            ),
            alt="Bars by stage: " + "; ".join(f"{s.name} {s.core_seconds:.0f} core-seconds" for s in stages) + ".",
            caption="Measured time by stage. Unlike tokens and FLOPs, it differs between runs of one seed.",
        ),
    ]


def _stages_panel(title: str, stages: Sequence[StageCost], values: Sequence[str]) -> Panel:
    bars = Series(label="", points=[(place, float(text)) for place, text in enumerate(values)], texts=values)
    return Panel(title=title, kind="bars", flip=True, labels=[stage.name for stage in stages], series=(bars,))


def overview_chart(findings: Findings) -> Chart:
    """Chart the accuracy over all families: in each setting, and of each student."""
    rows = {label: findings.evaluations[when, mode].rows("all")[0] for when, mode, label, _ in SETTINGS}
    for branch in findings.summary.branches:
        if branch.name != "teacher":
            rows[f"student: {branch.title}"] = findings.students[branch.name, "auto"].rows("all")[0]
    bars = [
        Series(
            label="",
            colour="before" if label.startswith("before") else "off" if label.startswith("student") else "after",
            points=[(place, row.accuracy)],
            low=[row.interval.low],
            high=[row.interval.high],
            texts=[f"{row.accuracy:.1%}"],
        )
        for place, (label, row) in enumerate(rows.items())
    ]
    return Chart(
        name="overview",
        kind="bars",
        flip=True,
        percent=True,
        width=4.6,
        labels=list(rows),
        limits=(0, 1.15),
        series=bars,
        alt="Accuracy over all families: "
        + "; ".join(f"{label} {row.accuracy:.1%}" for label, row in rows.items())
        + ".",
        caption="Accuracy over all families, with 95 % intervals. Students answer other problems than the model that taught them.",
    )
