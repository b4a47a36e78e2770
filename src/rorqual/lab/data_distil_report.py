"""Conclude `data-distil`: score each task, apply the verdict rule, and build tables, charts and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2
from pathlib import Path
from typing import Literal

import numpy as np

from rorqual.core.records import RunDir
from rorqual.evals.compare import is_right
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.verdict import Verdict, together
from rorqual.lab.experiment import Experiment
from rorqual.lab.finding import Chart, Contrast, Finding, Series, Table, contrast_of_values
from rorqual.lab.job import evaluation, run_cost, value
from rorqual.lab.page import number
from rorqual.tasks.everyday import EVERYDAY_TASKS, price_of
from rorqual.tasks.everyday.prices import HIGH

Values = list[list[float]]
"""One list per seed, with one value for each held-out problem."""

MARGIN = 0.02
"""Non-inferiority margin, in accuracy or R²: the small set's score may be at most this much lower than the
full set's score. The margin was set before the runs of the published result."""
SETS = {
    "full-original": "all, original",
    "small-original": "a tenth, original",
    "small-teacher": "a tenth, teacher",
    "small-soft": "a tenth, teacher's distributions",
    "small-true": "a tenth, true",
    "full-teacher": "all, teacher",
}
MEASURES = {"classification": "right", "regression": "R²", "generation": "valid"}
QUESTIONS = (
    ("full-original", "small-teacher", "a tenth from the teacher, against all of the original"),
    ("full-original", "small-true", "control: a tenth with true answers, against all of the original"),
    ("small-original", "small-teacher", "a tenth: from the teacher, against the original"),
    ("full-teacher", "small-teacher", "from the teacher: a tenth, against all"),
    ("full-original", "full-teacher", "all: from the teacher, against the original"),
    ("full-original", "small-soft", "a tenth with the teacher's distributions, against all of the original"),
)


def conclusion(experiment: Experiment, places: Mapping[int, Path], arms: Mapping[str, Sequence[str]]) -> Finding:
    """Return the finding over all seeds. The claim holds if it holds for all tasks, and fails if it fails for at least
    one task."""
    all_rows: list[Contrast] = []
    tables: list[Table] = []
    charts: list[Chart] = []
    words: list[str] = []
    verdicts: list[Verdict] = []
    for task, sets in arms.items():
        evaluations = {arm: [evaluation(place, f"data-{task}-{arm}-test") for place in places.values()] for arm in sets}
        scores = {arm: [scored(result) for result in results] for arm, results in evaluations.items()}
        rows = [
            contrast_of_values(question, scores[a], scores[b], unit=unit_of(task), of=named(task))
            for a, b, question in QUESTIONS
            if a in sets and b in sets
        ]
        if EVERYDAY_TASKS[task].form == "generation":
            rows += writing(task, places)
        all_rows += rows
        verdicts.append(as_good(rows[0]))
        words.append(sentence(task, rows, verdicts[-1], places))
        tables.append(table(task, evaluations, scores, places))
        charts.append(chart(task, scores))
    return experiment.found(
        places,
        verdict=together(verdicts),
        words=(*words, rule()),
        contrasts=tuple(sorted(all_rows, key=lambda row: row.of != "all" and order(row.question))),
        tables=tuple(tables),
        charts=tuple(charts),
    )


def order(question: str) -> int:
    """Return the position of a question on the page. Contrasts are sorted by this position, so that each question lists
    all tasks together."""
    known = [text for *_, text in QUESTIONS]
    return known.index(question) if question in known else len(known)


def as_good(contrast: Contrast) -> Verdict:
    """Judge whether the teacher's small set is worse than the full original set by at most `MARGIN`."""
    return contrast.judge(-MARGIN)


def rule() -> str:
    """Return a text that states the verdict rule."""
    return (
        "A task's claim holds if both 99 % intervals of the difference (bootstrap, and Student's t over at least five seeds) lie above "
        f"-{MARGIN:.2f} (accuracy or R²). It does not hold if both lie below. The whole claim holds if all three tasks hold, and does not "
        "hold if one does not. All students of a task start from one base and take the same number of steps on batches of the same size."
    )


def scored(result: Evaluation) -> list[float]:
    """Return a score per problem: 1 for a right reply, 0 for a wrong reply.

    For the regression task, whose answers are prices, the score is 1 - error² / variance. The mean of these scores is
    R².
    """
    if result.samples[0].family != "prices":
        return [is_right(sample) for sample in result.samples]
    variance = float(np.var([int(sample.answer) for sample in result.samples]))
    return [1 - error**2 / variance for error in errors(result)]


def errors(result: Evaluation) -> list[float]:
    """Return the absolute errors of the predicted prices. A reply that is not a price counts as the worst possible
    price."""
    distances = []
    for sample in result.samples:
        price, truth = price_of(sample.reply), int(sample.answer)
        distances.append(float(max(truth, HIGH - truth) if price is None else abs(price - truth)))
    return distances


def unreadable(result: Evaluation) -> int:
    """Return the number of replies that are not a price."""
    return sum(price_of(sample.reply) is None for sample in result.samples)


def unit_of(task: str) -> Literal["points", "ratio"]:
    """Return the unit of a task's measure. R² is a ratio, not a share of problems."""
    return "ratio" if EVERYDAY_TASKS[task].form == "regression" else "points"


def named(task: str) -> str:
    """Return a task's label in the contrasts, with its measure if the measure is not a share."""
    return f"{task}, R²" if EVERYDAY_TASKS[task].form == "regression" else task


def writing(task: str, places: Mapping[int, Path]) -> list[Contrast]:
    """Return the extra contrasts of the generation task: validity at temperature 1, and loss on true sentences."""
    a, b = (f"data-{task}-{arm}-test" for arm in ("full-original", "small-teacher"))
    free = [
        [[is_right(s) for s in evaluation(at, f"{name}-free").samples] for at in places.values()] for name in (a, b)
    ]
    loss: list[Values] = [[value(at, f"{name}-loss") for at in places.values()] for name in (a, b)]
    question = QUESTIONS[0][2]
    return [
        contrast_of_values(question, *free, unit="points", of=f"{task}, at temperature 1"),
        contrast_of_values(f"{question}: loss on true sentences", *loss, unit="nats", of=task),
    ]


def sentence(task: str, rows: Sequence[Contrast], verdict: Verdict, places: Mapping[int, Path]) -> str:
    """Return sentences that state the result of a task."""
    main, control = rows[0], rows[1]
    what, unit = MEASURES[EVERYDAY_TASKS[task].form], main.unit
    sign = " %" if unit == "points" else ""
    counts = [value(at, f"data-{task}-sets") for at in places.values()]
    small, full = (np.mean([count[name]["rows"] for count in counts]) for name in ("small-teacher", "full-original"))
    return (
        f"{EVERYDAY_TASKS[task].form.capitalize()} ({task}): {verdict}. {small:.0f} rows from the teacher: {what} "
        f"{number(main.b, unit)}{sign}; all {full:.0f} original rows: {number(main.a, unit)}{sign}; difference "
        f"{number(main.difference, unit, signed=True)} [{number(main.low, unit, signed=True)}, "
        f"{number(main.high, unit, signed=True)}]. With true answers the tenth reaches {number(control.b, unit)}{sign}."
    )


def table(
    task: str,
    evaluations: Mapping[str, Sequence[Evaluation]],
    scores: Mapping[str, Values],
    places: Mapping[int, Path],
) -> Table:
    """Return a table of a task with one row per training set and one row for the teacher."""
    form = EVERYDAY_TASKS[task].form
    counts = [value(at, f"data-{task}-sets") for at in places.values()]
    heads = ["training set", "rows", "epochs", "core-seconds", "share true", MEASURES[form], *EXTRA[form], "each seed"]
    rows = []
    for arm, ones in evaluations.items():
        trained = [run_cost(RunDir(at / f"data-{task}-{arm}")) for at in places.values()]
        size, true = (float(np.mean([count[arm][what] for count in counts])) for what in ("rows", "right"))
        epochs = float(
            np.mean([cost.tokens / count[arm]["tokens"] for cost, count in zip(trained, counts, strict=True)])
        )
        spent = float(np.mean([cost.core_seconds for cost in trained]))
        cells = (f"{size:.0f}", f"{epochs:.0f}", f"{spent:.1f}", f"{true:.0%}")
        rows.append((SETS[arm], *cells, *measured(task, f"data-{task}-{arm}-test", ones, places)))
    name = f"data-teacher-on-{task}"
    teacher = [evaluation(at, name) for at in places.values()]
    rows.append(("teacher", "", "", "", "", *measured(task, name, teacher, places)))
    tenth, full = (np.mean([count[f"{size}-teacher-core-seconds"] for count in counts]) for size in ("small", "full"))
    return Table(
        title=f"{form.capitalize()}: {task}",
        heads=tuple(heads),
        rows=tuple(rows),
        note=f"In the original set {EVERYDAY_TASKS[task].noise}. The teacher took {tenth:.1f} core-seconds for a tenth and {full:.1f} for all. "
        + NOTES[form],
    )


EXTRA: Mapping[str, tuple[str, ...]] = {
    "classification": (),
    "regression": ("mean error", "no price"),
    "generation": ("valid at temperature 1", "loss, nats", "voices, bits"),
}
NOTES = {
    "classification": "Greedy answers.",
    "regression": "R² is 1 - mean squared error / variance of the truth. 'no price' counts replies that are not a number; "
    "these get the worst error.",
    "generation": "Valid: one of the two right sentences. Loss: per token of true sentences in both voices. Voices: the entropy of "
    "active and passive among valid sentences at temperature 1, at most 1 bit.",
}


def measured(task: str, name: str, results: Sequence[Evaluation], places: Mapping[int, Path]) -> tuple[str, ...]:
    """Return the measures of a model on a task as table cells: means over seeds, then the score of every seed."""
    form, unit = EVERYDAY_TASKS[task].form, unit_of(task)
    means = [float(np.mean(scored(result))) for result in results]
    cells = [number(float(np.mean(means)), unit)]
    if form == "regression":
        cells.append(f"{np.mean([np.mean(errors(result)) for result in results]):.1f}")
        cells.append(f"{sum(map(unreadable, results))} of {sum(len(result.samples) for result in results)}")
    if form == "generation":
        free = [evaluation(at, f"{name}-free") for at in places.values()]
        cells.append(number(float(np.mean([is_right(s) for result in free for s in result.samples])), "points"))
        cells.append(f"{np.mean([np.mean(value(at, f'{name}-loss')) for at in places.values()]):.3f}")
        cells.append(f"{np.mean([voices(result) for result in free]):.2f}")
    return (*cells, ", ".join(number(mean, unit) for mean in means))


def voices(result: Evaluation) -> float:
    """Return the entropy, in bits, of the choice between active and passive voice in the valid sentences. Return 0 if
    no sentence is valid."""
    passive = [" by " in sample.reply for sample in result.samples if is_right(sample)]
    share = sum(passive) / len(passive) if passive else 0.0
    return -sum(p * log2(p) for p in (share, 1 - share) if p)


def chart(task: str, scores: Mapping[str, Values]) -> Chart:
    """Return a bar chart of the mean score of each training set, with a dot for each seed."""
    form = EVERYDAY_TASKS[task].form
    means = {arm: [float(np.mean(values)) for values in by_seed] for arm, by_seed in scores.items()}
    seeds = zip(*means.values(), strict=True)
    points = tuple((float(x), float(np.mean(by_seed))) for x, by_seed in enumerate(means.values()))
    dots = tuple(tuple((float(x), y) for x, y in enumerate(line)) for line in seeds)
    return Chart(
        name=f"data-{task}",
        title=f"{form.capitalize()}: {task}, by training set",
        kind="bars",
        y=MEASURES[form],
        labels=tuple(SETS[arm].replace(", ", ",\n").replace("teacher's ", "teacher's\n") for arm in scores),
        series=(Series(label="held-out problems", points=points, by_seed=dots),),
        percent=unit_of(task) == "points",
        caption="Bars are means over seeds, dots are seeds.",
    )
