"""A cascade as text tables and as one HTML page: accuracy over cost, and the calibration of the student's confidence."""

from __future__ import annotations

from rorqual.evals.cascade import Cascade, CascadePoint
from rorqual.evals.table import percent, percent_interval
from rorqual.report.chart import Chart, Series, draw
from rorqual.report.page import render_page
from rorqual.report.table import Table

SHARES = (0.1, 0.25, 0.5, 0.75)
"""Shares of problems that go to the teacher. The table has a row for each of these shares, and a row for the cascade at its
threshold."""
SIGNALS = {"votes": "share of votes", "logprob": "mean log-probability per token"}


def points_table(cascade: Cascade) -> Table:
    """Return a table with the results of each model alone, of the cascade at its threshold, and of the cascade at the shares in `SHARES`."""
    choices = cascade.problems_by_confidence()
    points = [
        ("student alone", cascade.result_with_teacher_on(0, choices)),
        ("teacher alone", cascade.teacher_alone()),
        (f"cascade, sure={cascade.sure:g}", cascade.result_at_threshold()),
        *(("cascade", cascade.result_with_teacher_on(round(share * len(choices)), choices)) for share in SHARES),
    ]
    heads = (
        "",
        "teacher answers %",
        "accuracy %",
        "95 % interval",
        "at random %",
        "tokens per problem",
        "MFLOPs per problem",
    )
    title = f"cascade of {cascade.student.model} and {cascade.teacher.model}: {cascade.student.task}, {cascade.student.split}"
    return Table(title=title, heads=heads, rows=[_point_row(name, point) for name, point in points])


def _point_row(name: str, point: CascadePoint) -> tuple[str, ...]:
    shares = (percent(point.asked), percent(point.accuracy), percent_interval(point.interval), percent(point.at_random))
    return (name, *shares, f"{point.tokens:.1f}", "-" if point.flops is None else f"{point.flops / 1e6:,.1f}")


def calibration_table(cascade: Cascade) -> Table:
    """Return a table with the student's mean confidence and accuracy in each fifth of the problems, ordered by confidence."""
    rows = [
        (str(one.problems), percent(one.confidence), percent(one.accuracy), percent_interval(one.interval))
        for one in cascade.calibration_bins()
    ]
    title = f"confidence of the student, calibrated on the dev split by its {SIGNALS[cascade.calibration.signal]}"
    heads = ("problems", "confidence %", "right %", "95 % interval")
    return Table(title=title, heads=heads, rows=rows)


def cascade_notes(cascade: Cascade) -> str:
    """Return sentences on problems that are left out because a reply is ungraded, and on a threshold at which the teacher answers
    every problem. Return "" if neither is the case."""
    left_out = f"{cascade.ungraded_count} of {len(cascade.student.problem_keys)} problems are left out, because a reply could not be graded."
    always = (
        f"At sure={cascade.sure:g}, the teacher answers every problem, so the student only adds cost. Use the teacher alone, or a "
        "smaller sure=."
    )
    asks_always = cascade.result_at_threshold().asked == 1
    return " ".join([left_out] * bool(cascade.ungraded_count) + [always] * asks_always)


def cascade_table(cascade: Cascade) -> str:
    """Return the table of results and the table of the calibration as text."""
    parts = (points_table(cascade).text(), calibration_table(cascade).text(), cascade_notes(cascade))
    return "\n".join(filter(None, parts))


def cascade_page(cascade: Cascade) -> str:
    """Return the HTML page of a cascade."""
    return render_page(
        "cascade",
        cascade=cascade,
        picture=draw(cost_chart(cascade)),
        note=cascade_notes(cascade),
        points=points_table(cascade),
        calibration=calibration_table(cascade),
    )


def cost_chart(cascade: Cascade) -> Chart:
    """Chart accuracy over the mean cost per problem. The curve starts with the student alone, and ends where the teacher
    answers every problem."""
    points, teacher, chosen = cascade.curve(), cascade.teacher_alone(), cascade.result_at_threshold()

    def cost(point: CascadePoint) -> float:
        return point.flops / 1e6 if point.flops is not None else point.tokens

    lines = [
        Series(
            label="problems of low confidence",
            points=[(cost(point), point.accuracy) for point in points],
            low=[point.interval.low for point in points],
            high=[point.interval.high for point in points],
        ),
        Series(
            label="problems chosen at random",
            style="dashed",
            colour="before",
            points=[(cost(point), point.at_random) for point in points],
        ),
    ]
    marks = (("student alone", points[0]), (f"sure={cascade.sure:g}", chosen), ("teacher alone", teacher))
    dots = [
        Series(label="", style="points", colour="ink", points=[(cost(point), point.accuracy)], texts=[name])
        for name, point in marks
    ]
    return Chart(
        name="curve",
        x="generated tokens per problem" if cascade.flops is None else "MFLOPs per problem",
        y="accuracy",
        percent=True,
        series=[*lines, *dots],
        alt=f"Accuracy over cost. Student {points[0].accuracy:.1%}, cascade {chosen.accuracy:.1%}, teacher {teacher.accuracy:.1%}.",
        caption="The band is the 95 % interval over problems. Above the dashed line, the confidence chooses better than chance.",
    )
