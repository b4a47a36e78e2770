"""Pictures that compare the student with the other branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rorqual.evals.evaluation import ALL, Row
from rorqual.evals.pictures import Picture, Theme, panels
from rorqual.evals.plots_cost import CLOCK_PICTURE
from rorqual.evals.reading import Branch, Findings
from rorqual.evals.series import draw_series, ends

MARKERS = ("D", "o", "s", "^", "v")
WIDE = 0.99


def student_pictures(findings: Findings) -> list[Picture]:
    """Return the pictures of the students: accuracy of every branch, training curves, and accuracy over cost."""
    return [accuracy(findings), learning(findings), accuracy_and_cost(findings)]


def colours(theme: Theme) -> tuple[str, ...]:
    """Return one colour per branch, in the order of the summary: teacher, base, distilled, reinforced, answers-only."""
    return theme.ink, theme.before, theme.after, theme.off, theme.on


def accuracies(findings: Findings, branch: Branch, confidence: float) -> dict[str, Row]:
    """Return the summary rows of a branch by family, pooled row first. The rows are from the evaluation in which the
    model chooses whether to think."""
    evaluation = findings.students[branch.name, "auto"]
    rows = [*evaluation.rows("all", confidence), *evaluation.rows("family", confidence)]
    return {row.family: row for row in rows}


def accuracy(findings: Findings) -> Picture:
    """Plot held-out accuracy of every branch, pooled and by family."""
    branches = findings.summary.branches
    tables = [(accuracies(findings, b, 0.95), accuracies(findings, b, WIDE)) for b in branches]
    families = list(tables[0][0])

    def draw(theme: Theme) -> Figure:
        figure, (axis,) = panels(1, 1, 7.4, 0.9 + 0.78 * len(families))
        places = np.arange(len(families), dtype=float)[::-1]
        for index, (branch, (narrow, wide)) in enumerate(zip(branches, tables, strict=True)):
            heights = places + 0.15 * ((len(branches) - 1) / 2 - index)
            _draw_branch(
                axis, theme, index, branch.title, heights, [narrow[f] for f in families], [wide[f] for f in families]
            )
        axis.axhline(len(families) - 1.5, color=theme.faint, linewidth=0.7)
        names = ["all families" if family == ALL else family for family in families]
        axis.set_yticks(places, names, color=theme.ink, fontsize=9)
        axis.grid(axis="y", visible=False)
        axis.set_xlim(-0.02, 1.02)
        axis.set_ylim(-0.6, len(families) - 0.4)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        figure.legend(*axis.get_legend_handles_labels(), loc="outside upper left", ncols=5)
        return figure

    results = "; ".join(f"{b.title} {table[ALL].accuracy:.0%}" for b, (table, _) in zip(branches, tables, strict=True))
    caption = (
        "Accuracy on held-out problems; each model chooses whether to think. All models answer the same problems. "
        "Thick lines are 95 % intervals, thin lines 99 % (Wilson)."
    )
    return Picture("students", f"Accuracy of each model over all families: {results}.", caption, draw)


def _draw_branch(
    axis: Axes, theme: Theme, index: int, title: str, heights: np.ndarray, narrow: Sequence[Row], wide: Sequence[Row]
) -> None:
    colour = colours(theme)[index % len(MARKERS)]
    axis.hlines(heights, [r.interval.low for r in wide], [r.interval.high for r in wide], color=colour, linewidth=0.9)
    axis.hlines(
        heights, [r.interval.low for r in narrow], [r.interval.high for r in narrow], color=colour, linewidth=2.4
    )
    axis.plot([r.accuracy for r in narrow], heights, linestyle="none", marker=MARKERS[index % len(MARKERS)], markersize=5.5,
              color=colour, markerfacecolor=theme.ground if index < 2 else colour, label=title)  # fmt: skip


def learning(findings: Findings) -> Picture:
    """Plot the training curves of the three trained branches."""
    trained = findings.training

    def draw(theme: Theme) -> Figure:
        figure, (left, right) = panels(2, 2, 3.7, 2.6)
        loss = ("loss/next_token", "loss")
        draw_series(left, theme, trained["distilled"], [(loss, theme.after, "distilled")])
        draw_series(left, theme, trained["answers-only"], [(loss, theme.on, "answers alone")])
        left.set_title("Fine-tuning: loss")
        left.set_ylabel("nats per token")
        left.set_ylim(bottom=0)
        left.legend(loc="best")
        wanted = [
            (("reward",), theme.off, "right"),
            (("think_share",), theme.before, "thinks"),
            (("right_when_thinking",), theme.on, "right when it thinks"),
        ]
        draw_series(right, theme, trained["reinforced"], wanted)
        right.set_title("GRPO: rollouts of the reinforced student")
        right.set_ylim(0, 1.03)
        right.yaxis.set_major_formatter(PercentFormatter(1.0))
        return figure

    alt = (
        f"The loss of the distilled student went from {ends(trained['distilled'], 'loss/next_token', 'loss')}. For the "
        f"reinforced student, the reward went from {ends(trained['reinforced'], 'reward')} and the share of answers that think "
        f"from {ends(trained['reinforced'], 'think_share')}."
    )
    caption = (
        "All start from one base student. The two losses are not comparable: one text has thinking, the other has not."
    )
    return Picture("students-learning", alt, caption, draw)


def accuracy_and_cost(findings: Findings) -> Picture:
    """Plot the accuracy of the students over their cost.

    The teacher is not drawn as a point. A student trained on the teacher's samples has a second, hollow marker at the
    cost that includes the teacher's training. A dotted line joins the two markers.
    """
    summary = findings.summary
    teacher = next((summary.cost_of(b).core_seconds for b in summary.branches if b.name == "teacher"), 0.0)
    students = [
        (place, branch, accuracies(findings, branch, 0.95)[ALL], _own_cost(findings, branch))
        for place, branch in enumerate(summary.branches)
        if branch.name != "teacher"
    ]

    def draw(theme: Theme) -> Figure:
        figure, (axis,) = panels(1, 1, 7.4, 2.9)
        for place, branch, row, spent in students:
            colour = colours(theme)[place % len(MARKERS)]
            error = [[row.accuracy - row.interval.low], [row.interval.high - row.accuracy]]
            marker: Any = {"marker": MARKERS[place % len(MARKERS)], "color": colour, "markersize": 6.5}
            axis.errorbar(
                [spent], [row.accuracy], yerr=error, elinewidth=1.5, label=branch.title, linestyle="none", **marker
            )
            axis.annotate(branch.title, (spent, row.accuracy), xytext=(8, 5 if place % 2 else -12), textcoords="offset points", fontsize=8.5,
                          color=colour)  # fmt: skip
            if "sample the teacher" in branch.stages:
                axis.plot([spent, spent + teacher], [row.accuracy] * 2, color=colour, linestyle=":", linewidth=1.2)
                axis.plot([spent + teacher], [row.accuracy], markerfacecolor=theme.ground, **marker)
        axis.set_ylim(0, 1.03)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.set_xlim(left=-0.02 * axis.get_xlim()[1])
        axis.set_xlabel("core-seconds after the base student")
        axis.set_ylabel("right, all families")
        return figure

    results = "; ".join(f"{b.title} {row.accuracy:.0%} after {spent:.0f} core-seconds" for _, b, row, spent in students)
    caption = (
        "Accuracy over cost by branch. The cost of distillation and of training on answers includes sampling the teacher. Hollow "
        "markers add the teacher's own training, which a second student would not pay again."
    )
    return Picture(f"{CLOCK_PICTURE}-students", f"Accuracy over cost: {results}.", caption, draw)


def _own_cost(findings: Findings, branch: Branch) -> float:
    return 0.0 if branch.name == "student-base" else findings.summary.cost_of(branch).core_seconds
