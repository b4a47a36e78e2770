"""A cascade as text tables and as one HTML page: accuracy over cost, and the calibration of the student's confidence."""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure

from rorqual.evals import page as html
from rorqual.evals.cascade import Cascade, CascadePoint
from rorqual.evals.pictures import DARK, LIGHT, Picture, Theme, panels, png
from rorqual.evals.table import percent, percent_interval, render

SHARES = (0.1, 0.25, 0.5, 0.75)
"""Shares of problems for the teacher that the table shows beside the chosen point."""
HEADS = (
    "",
    "teacher answers %",
    "accuracy %",
    "95 % interval",
    "at random %",
    "tokens per problem",
    "MFLOPs per problem",
)
BIN_HEADS = ("problems", "confidence %", "right %", "95 % interval")


def rows(cascade: Cascade) -> list[tuple[str, ...]]:
    """Return the rows of the table: both models alone, the cascade at its threshold, and the cascade at fixed shares."""
    choices = cascade.choices()
    points = [
        ("student alone", cascade.point(0, choices)),
        ("teacher alone", cascade.teacher_alone()),
        (f"cascade, sure={cascade.sure:g}", cascade.chosen()),
        *(("cascade", cascade.point(round(share * len(choices)), choices)) for share in SHARES),
    ]
    return [_row(name, point) for name, point in points]


def _row(name: str, point: CascadePoint) -> tuple[str, ...]:
    flops = "-" if point.flops is None else f"{point.flops / 1e6:,.1f}"
    interval = percent_interval(point.interval)
    return (
        name,
        percent(point.asked),
        percent(point.accuracy),
        interval,
        percent(point.at_random),
        f"{point.tokens:.1f}",
        flops,
    )


def bin_rows(cascade: Cascade) -> list[tuple[str, ...]]:
    """Return the rows of the calibration table."""
    return [
        (str(one.problems), percent(one.confidence), percent(one.accuracy), percent_interval(one.interval))
        for one in cascade.bins()
    ]


def cascade_table(cascade: Cascade) -> str:
    """Return both tables as text."""
    title = f"cascade of {cascade.student.model} and {cascade.teacher.model}: {cascade.student.task}, {cascade.student.split}"
    calibration = f"confidence of the student, calibrated on the dev split by its {SIGNALS[cascade.calibration.signal]}"
    parts = [
        render(title, HEADS, rows(cascade), text_columns=1),
        render(calibration, BIN_HEADS, bin_rows(cascade), text_columns=0),
        *([ungraded_note(cascade)] if cascade.ungraded else []),
    ]
    return "\n".join(parts)


def ungraded_note(cascade: Cascade) -> str:
    """State how many problems are left out."""
    return (
        f"{cascade.ungraded} of {len(cascade.student.keys)} problems are left out, because a reply could not be graded."
    )


SIGNALS = {"votes": "share of votes", "logprob": "mean log-probability per token"}


def cascade_page(cascade: Cascade) -> str:
    """Return the HTML page."""
    pictures = [curve_picture(cascade), calibration_picture(cascade)]
    body = [
        "<header><h1>A cascade of two models</h1>",
        html.para(
            f"{cascade.student.model} answers {cascade.student.task}. Where it is less than {cascade.sure:.0%} sure, "
            f"{cascade.teacher.model} answers instead.",
            "lede",
        ),
        "</header>",
        *(html.figure(picture, png(picture, LIGHT), png(picture, DARK)) for picture in pictures),
        *([html.para(ungraded_note(cascade), "note")] if cascade.ungraded else []),
        html.section("points", "Accuracy and cost", html.table("points", HEADS, [("", rows(cascade))])),
        html.section(
            "calibration",
            "Calibration",
            html.table("calibration", ("", *BIN_HEADS), [("", [("", *row) for row in bin_rows(cascade)])]),
        ),
    ]
    return html.page(f"Rorqual: cascade of {cascade.student.model} and {cascade.teacher.model}", "\n".join(body))


def curve_picture(cascade: Cascade) -> Picture:
    """Plot accuracy over the mean cost per problem, from the student alone to the teacher for every problem."""
    points, teacher, chosen = cascade.curve(), cascade.teacher_alone(), cascade.chosen()
    by_flops = cascade.flops is not None

    def cost(point: CascadePoint) -> float:
        return point.flops / 1e6 if point.flops is not None else point.tokens

    def draw(theme: Theme) -> Figure:
        figure, (axis,) = panels(1, 1, 6.6, 3.4)
        xs = [cost(point) for point in points]
        axis.fill_between(
            xs,
            [p.interval.low for p in points],
            [p.interval.high for p in points],
            color=theme.after,
            alpha=0.12,
            linewidth=0,
        )
        axis.plot(
            xs,
            [p.at_random for p in points],
            color=theme.before,
            linestyle="--",
            linewidth=1.2,
            label="problems chosen at random",
        )
        axis.plot(
            xs, [p.accuracy for p in points], color=theme.after, linewidth=1.8, label="problems of low confidence"
        )
        marks = (
            ("student alone", points[0], "o"),
            (f"sure={cascade.sure:g}", chosen, "D"),
            ("teacher alone", teacher, "s"),
        )
        for name, point, marker in marks:
            axis.plot([cost(point)], [point.accuracy], marker, color=theme.ink, markersize=5)
            axis.annotate(
                name,
                (cost(point), point.accuracy),
                textcoords="offset points",
                xytext=(6, 6 if name == "teacher alone" else -11),
                fontsize=8,
            )
        axis.set_xlabel("MFLOPs per problem" if by_flops else "generated tokens per problem")
        axis.set_ylabel("accuracy")
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axis.margins(x=0.12)
        figure.legend(loc="outside upper right", ncols=2)
        return figure

    alt = f"Accuracy over cost. Student {points[0].accuracy:.1%}, cascade {chosen.accuracy:.1%}, teacher {teacher.accuracy:.1%}."
    caption = (
        "The band is the 95 % interval over problems. Above the dashed line, the confidence chooses better than chance."
    )
    return Picture("curve", alt, caption, draw)


def calibration_picture(cascade: Cascade) -> Picture:
    """Plot the share of right answers over the confidence."""
    bins = cascade.bins()
    alt = (
        "Calibration: " + "; ".join(f"confidence {one.confidence:.0%}, right {one.accuracy:.0%}" for one in bins) + "."
    )
    caption = "Each point is a fifth of the problems, with its 95 % interval. On the dashed line, the confidence is the share of right answers."
    return Picture("calibration", alt, caption, partial(_draw_bins, cascade))


def _draw_bins(cascade: Cascade, theme: Theme) -> Figure:
    figure, (axis,) = panels(1, 1, 6.6, 3.4)
    bins = cascade.bins()
    axis.plot([0, 1], [0, 1], color=theme.before, linestyle="--", linewidth=1.2)
    xs, ys = [one.confidence for one in bins], [one.accuracy for one in bins]
    errors = [[one.accuracy - one.interval.low for one in bins], [one.interval.high - one.accuracy for one in bins]]
    axis.errorbar(xs, ys, yerr=errors, fmt="o", color=theme.after, elinewidth=1, capsize=2, markersize=5)
    axis.set_xlabel("confidence of the student")
    axis.set_ylabel("right answers")
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axis.set_xlim(-0.03, 1.03)
    axis.set_ylim(-0.03, 1.03)
    return figure
