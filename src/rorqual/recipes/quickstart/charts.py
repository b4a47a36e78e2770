"""The charts of the quickstart's report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rorqual.core.records import Thinking
from rorqual.evals.evaluation import ALL, Evaluation, EvaluationRow
from rorqual.recipes.quickstart.findings import Branch, Findings, metric_points
from rorqual.report.chart import Chart, Colour, Panel, Series

SETTINGS: tuple[tuple[str, Thinking, str, Colour], ...] = (
    ("before", "auto", "before GRPO, own choice", "before"),
    ("before", "on", "before GRPO, made to think", "on"),
    ("after", "auto", "after GRPO, own choice", "after"),
    ("after", "off", "after GRPO, answering at once", "off"),
    ("after", "on", "after GRPO, made to think", "on"),
)
"""The thinking modes of the teacher, before and after GRPO, that the report compares. Evaluations before GRPO are drawn with
hollow markers."""
COLOURS: tuple[Colour, ...] = ("ink", "before", "after", "off", "on")
"""One colour per branch, in the order of the quickstart's summary: teacher, base, distilled, reinforced, answers-only."""


def charts(findings: Findings) -> list[Chart]:
    """Return the report's charts: three charts of the teacher, and one chart of the students if the quickstart trained
    students."""
    of_model = [overview_chart(findings), learning_chart(findings), accuracy_chart(findings)]
    return [*of_model, students_chart(findings)] if findings.students else of_model


def overview_chart(findings: Findings) -> Chart:
    """Chart the accuracy over all problem families, with one bar per entry of `SETTINGS` and one bar per student."""
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


def rows_by_family(evaluation: Evaluation) -> dict[str, EvaluationRow]:
    """Return the result row of each family, by the name of the family."""
    return {row.family: row for row in evaluation.rows("family")}


def learning_chart(findings: Findings) -> Chart:
    """Chart the SFT loss and the GRPO reward over steps."""
    loss, reward = metric_points(findings.sft, "loss/next_token"), metric_points(findings.grpo, "reward")
    mtp = metric_points(findings.sft, "loss/mtp")
    losses: list[tuple[str, Colour, list[tuple[float, float]]]] = [
        ("next token", "after", loss),
        ("token after it (MTP)", "off", mtp),
    ]
    return Chart(
        name="learning-curves",
        panels=(
            Panel(
                title="Worked solutions: loss",
                x="step",
                y="nats per token",
                series=[
                    Series(label=label, style="smooth", colour=colour, points=points)
                    for label, colour, points in losses
                    if points
                ],
            ),
            Panel(
                title="GRPO: reward of rollouts",
                x="step",
                y="mean reward",
                limits=(0, 1),
                series=[Series(label="", style="smooth", points=reward)],
            ),
        ),
        alt=f"Two learning curves. Fine-tuning loss went from {describe_first_and_last(loss)}; "
        f"GRPO reward went from {describe_first_and_last(reward)}.",
        caption="Faint lines: each step. Strong lines: a running mean over a twentieth of the run.",
    )


def describe_first_and_last(points: Sequence[tuple[float, float]]) -> str:
    """Return a phrase with the mean of a metric over the first twentieth of its steps and over the last twentieth."""
    if not points:
        return "not recorded"
    values, edge = [value for _, value in points], max(1, len(points) // 20)
    return f"{np.mean(values[:edge]):.3g} at first to {np.mean(values[-edge:]):.3g} at last"


def accuracy_chart(findings: Findings) -> Chart:
    """Chart the held-out accuracy by family for each entry of `SETTINGS`, with 95 % intervals, and the best baseline."""
    families = findings.families
    tables = [rows_by_family(findings.evaluations[when, mode]) for when, mode, _, _ in SETTINGS]
    changes = "; ".join(
        f"{f} {tables[0][f].accuracy:.0%} to {tables[2][f].accuracy:.0%} (before GRPO, made to think: {tables[1][f].accuracy:.0%})"
        for f in families
    )
    settings = [
        accuracy_points(label, [table[family] for family in families], colour, hollow=when == "before")
        for (when, _, label, colour), table in zip(SETTINGS, tables, strict=True)
    ]
    best = [(place, tables[1][family].best_baseline[1]) for place, family in enumerate(families)]
    return Chart(
        name="accuracy",
        kind="points",
        flip=True,
        percent=True,
        labels=families,
        height=0.9 + 0.62 * len(families),
        series=[*settings, Series(label="best baseline", colour="ink", hollow=True, points=best)],
        alt=f"Held-out accuracy per family before and after GRPO, by the model's own choice: {changes}.",
        caption="Accuracy on held-out problems, with 95 % Wilson intervals. All settings use the same problems.",
    )


def accuracy_points(label: str, rows: Sequence[EvaluationRow], colour: Colour, *, hollow: bool) -> Series:
    """Return a chart series with the accuracy and the 95 % interval of each result row."""
    return Series(
        label=label,
        colour=colour,
        hollow=hollow,
        points=[(place, row.accuracy) for place, row in enumerate(rows)],
        low=[row.interval.low for row in rows],
        high=[row.interval.high for row in rows],
    )


def branch_rows(findings: Findings, branch: Branch) -> dict[str, EvaluationRow]:
    """Return the result rows of a branch in the thinking mode `auto`, by family. The first row covers all families."""
    evaluation = findings.students[branch.name, "auto"]
    rows = [*evaluation.rows("all"), *evaluation.rows("family")]
    return {row.family: row for row in rows}


def students_chart(findings: Findings) -> Chart:
    """Chart held-out accuracy of every branch, pooled and by family."""
    tables = [(branch, branch_rows(findings, branch)) for branch in findings.summary.branches]
    families = list(tables[0][1])
    results = "; ".join(f"{branch.title} {rows[ALL].accuracy:.0%}" for branch, rows in tables)
    return Chart(
        name="students",
        kind="points",
        flip=True,
        percent=True,
        labels=["all families" if family == ALL else family for family in families],
        height=0.9 + 0.7 * len(families),
        series=[
            accuracy_points(branch.title, [*rows.values()], colour, hollow=branch.name in ("teacher", "student-base"))
            for (branch, rows), colour in zip(tables, COLOURS, strict=False)
        ],
        alt=f"Accuracy of each model over all families: {results}.",
        caption="Accuracy on held-out problems, with 95 % Wilson intervals; each model chooses whether to think. All models answer "
        "the same problems.",
    )
