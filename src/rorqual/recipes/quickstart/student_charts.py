"""The charts that compare the student with the other branches."""

from __future__ import annotations

from rorqual.evals.evaluation import ALL, Row
from rorqual.recipes.quickstart.charts import CLOCK_CHART, curves_panel, ends
from rorqual.recipes.quickstart.findings import Branch, Findings, series
from rorqual.report.chart import Chart, Colour, Series

COLOURS: tuple[Colour, ...] = ("ink", "before", "after", "off", "on")
"""One colour per branch, in the order of the summary: teacher, base, distilled, reinforced, answers-only."""


def student_charts(findings: Findings) -> list[Chart]:
    """Return the charts of the students: accuracy of every branch, training curves, and accuracy over cost."""
    if not findings.students:
        return []
    return [students_chart(findings), students_learning_chart(findings), students_cost_chart(findings)]


def branch_rows(findings: Findings, branch: Branch, confidence: float = 0.95) -> dict[str, Row]:
    """Return the rows of a branch by family, pooled row first. The model chooses whether to think."""
    evaluation = findings.students[branch.name, "auto"]
    rows = [*evaluation.rows("all", confidence), *evaluation.rows("family", confidence)]
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
            Series(
                label=branch.title,
                colour=colour,
                hollow=branch.name in ("teacher", "student-base"),
                points=[(place, rows[family].accuracy) for place, family in enumerate(families)],
                low=[rows[family].interval.low for family in families],
                high=[rows[family].interval.high for family in families],
            )
            for (branch, rows), colour in zip(tables, COLOURS, strict=False)
        ],
        alt=f"Accuracy of each model over all families: {results}.",
        caption="Accuracy on held-out problems, with 95 % Wilson intervals; each model chooses whether to think. All models answer "
        "the same problems.",
    )


def students_learning_chart(findings: Findings) -> Chart:
    """Chart the training curves of the three trained branches."""
    trained, loss = findings.training, ("loss/next_token", "loss")
    grpo = trained["reinforced"]
    losses: list[tuple[str, Colour, list[tuple[float, float]]]] = [
        ("distilled", "after", series(trained["distilled"], *loss)),
        ("answers alone", "on", series(trained["answers-only"], *loss)),
    ]
    rollouts: list[tuple[str, Colour, list[tuple[float, float]]]] = [
        ("right", "off", series(grpo, "reward")),
        ("thinks", "before", series(grpo, "think_share")),
        ("right when it thinks", "on", series(grpo, "right_when_thinking")),
    ]
    return Chart(
        name="students-learning",
        panels=(
            curves_panel("Fine-tuning: loss", losses, y="nats per token"),
            curves_panel("GRPO: rollouts of the reinforced student", rollouts, percent=True, limits=(0, 1.03)),
        ),
        alt=f"The loss of the distilled student went from {ends(trained['distilled'], *loss)}. For the reinforced student, the reward "
        f"went from {ends(grpo, 'reward')} and the share of answers that think from {ends(grpo, 'think_share')}.",
        caption="All start from one base student. The two losses are not comparable: one text has thinking, the other has not.",
    )


def students_cost_chart(findings: Findings) -> Chart:
    """Chart the accuracy of the students over their cost.

    The teacher is not drawn as a point. A student trained on the teacher's samples has a second, hollow marker at the
    cost that includes the teacher's training. A dashed line joins the two markers.
    """
    summary = findings.summary
    teacher = sum(summary.cost_of(branch).core_seconds for branch in summary.branches if branch.name == "teacher")
    drawn, words = [], []
    for branch, colour in zip(summary.branches, COLOURS, strict=False):
        if branch.name == "teacher":
            continue
        row = branch_rows(findings, branch)[ALL]
        spent = 0.0 if branch.name == "student-base" else summary.cost_of(branch).core_seconds
        words.append(f"{branch.title} {row.accuracy:.0%} after {spent:.0f} core-seconds")
        found = {"colour": colour, "style": "points", "low": [row.interval.low], "high": [row.interval.high]}
        if "sample the teacher" in branch.stages:
            paid = spent + teacher
            ends_of_line = ((spent, row.accuracy), (paid, row.accuracy))
            drawn.append(Series(label="", points=ends_of_line, style="dashed", colour=colour))
            drawn.append(Series(label="", points=[(paid, row.accuracy)], hollow=True, **found))
        drawn.append(Series(label="", points=[(spent, row.accuracy)], texts=[branch.title], **found))
    return Chart(
        name=f"{CLOCK_CHART}-students",
        x="core-seconds after the base student",
        y="right, all families",
        percent=True,
        limits=(0, 1.03),
        series=drawn,
        alt=f"Accuracy over cost: {'; '.join(words)}.",
        caption="Accuracy over cost by branch. The cost of distillation and of training on answers includes sampling the teacher. "
        "Hollow markers add the teacher's own training, which a second student would not pay again.",
    )
