"""Report the experiment `sparse`: compare each arm with dense attention, apply the verdict rule, and build tables and a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from rorqual.evals.verdict import Verdict, together
from rorqual.lab.experiment import Experiment
from rorqual.lab.finding import Chart, Contrast, Finding, Series, Table, contrast_of_values, percent
from rorqual.lab.job import value

Arm = Literal["dense", "dsa", "adaptive", "window", "random", "block", "oracle"]
ARMS: Mapping[Arm, str] = {
    "dense": "dense",
    "dsa": "indexer",
    "adaptive": "indexer, adaptive budget",
    "window": "window with sinks",
    "random": "random positions",
    "block": "block means",
    "oracle": "most attended positions",
}
BASELINES: tuple[Arm, ...] = ("window", "random")
BUDGETS: Mapping[str, int] = {"a half": 2, "a quarter": 4, "an eighth": 8}
"""The divisor of each budget: a query attends to (text length / divisor) positions."""
LABELS = {divisor: label for label, divisor in BUDGETS.items()}
TRAINED = BUDGETS["a quarter"]
"""The budget of the training. Other budgets are measured without further training."""
KINDS: Mapping[str, str] = {"needle": "needle", "copy": "copied number", "count": "counting after the text"}
PERCENT, POINTS = 0.01, 0.02
"""The largest relative increase of the loss, and the largest drop in accuracy, that the claim allows."""
Measured = Mapping[Arm, Sequence[Mapping[str, Any]]]
"""The measurements of all arms, one per seed."""


def measured_by(arm: Arm) -> str:
    """Return the name of the job that measures an arm."""
    return f"sparse-measure-{arm}"


def part(measurement: Mapping[str, Any], arm: Arm, budget: int) -> Mapping[str, Any]:
    """Return the results of an arm at a budget. Dense attention has the same results at every budget."""
    found: Mapping[str, Any] = next(iter(measurement.values())) if arm == "dense" else measurement[str(budget)]
    return found


def paired(measured: Measured, a: Arm, b: Arm, budget: int, kind: str, of: str) -> tuple[list[Any], list[Any]]:
    """Return the metric named `of` ("loss" or "right") for two arms, as one list per seed.

    Only problems that both arms were measured on are included.
    """
    both = [[part(seed, arm, budget)[kind][of] for seed in measured[arm]] for arm in (a, b)]
    count = min(len(values) for arm in both for values in arm)
    first, second = ([values[:count] for values in arm] for arm in both)
    return first, second


def loss_contrast(measured: Measured, a: Arm, b: Arm, budget: int) -> Contrast:
    """Compare the losses of two arms, both divided by the mean loss of dense attention, so that 0.01 is one percent.

    The loss of a solution is the mean of its tokens, in nats. Each kind of problem has the same weight in each seed.
    """
    kinds = [paired(measured, a, b, budget, kind, "loss") for kind in KINDS]
    count = min(len(values) for arms in kinds for arm in arms for values in arm)
    sides: list[list[list[float]]] = [[], []]
    for seed in range(len(measured[a])):
        dense = part(measured["dense"][seed], "dense", budget)
        scale = mean(mean(dense[kind]["loss"][:count]) for kind in KINDS)
        for side, found in enumerate(sides):
            found.append([loss / scale for arms in kinds for loss in arms[side][seed][:count]])
    return contrast_of_values(
        f"loss over that of dense attention, {LABELS[budget]}: {ARMS[a]}, then {ARMS[b]}", *sides, unit="ratio"
    )


def right_contrast(measured: Measured, a: Arm, b: Arm, budget: int, kind: str) -> Contrast:
    """Compare two arms by their shares of exactly written solutions."""
    return contrast_of_values(
        f"exact solutions, {LABELS[budget]}: {ARMS[a]}, then {ARMS[b]}",
        *paired(measured, a, b, budget, kind, "right"),
        unit="points",
        of=kind,
    )


def goals(measured: Measured) -> list[tuple[str, Contrast, Verdict]]:
    """Return each goal as a sentence, with its comparison and its verdict."""
    found: list[tuple[str, Contrast, Verdict]] = []

    def goal(text: str, contrast: Contrast, verdict: Verdict) -> None:
        found.append((text, contrast, verdict))

    loss = loss_contrast(measured, "dense", "dsa", TRAINED)
    goal("The indexer's loss is at most 1 % above that of dense attention", loss, loss.judge(PERCENT, "below"))
    needle = right_contrast(measured, "dense", "dsa", TRAINED, "needle")
    goal("The indexer finds at most 2 points fewer needles than dense attention", needle, needle.judge(-POINTS))
    for arm in BASELINES:
        contrast = right_contrast(measured, arm, "dsa", TRAINED, "needle")
        goal(f"The indexer finds more needles than {ARMS[arm]}", contrast, contrast.sign)
    for budget in BUDGETS.values():
        contrast = right_contrast(measured, "dsa", "adaptive", budget, "needle")
        text = f"With {LABELS[budget]} of the positions on average, the adaptive budget finds at most 2 points fewer needles than the fixed one"
        goal(text, contrast, contrast.judge(-POINTS))
    return found


def report(experiment: Experiment, places: Mapping[int, Path]) -> Finding:
    """Return the finding from the measurements of all seeds."""
    measured = {arm: [value(place, measured_by(arm)) for place in places.values()] for arm in ARMS}
    judged = goals(measured)
    others = [
        contrast
        for arm in ARMS
        if arm != "dense"
        for contrast in (
            loss_contrast(measured, "dense", arm, TRAINED),
            *(right_contrast(measured, "dense", arm, TRAINED, kind) for kind in KINDS),
        )
    ]
    known = [contrast.question + contrast.of for _, contrast, _ in judged]
    return experiment.found(
        places,
        verdict=together([verdict for *_, verdict in judged]),
        words=words(judged, measured),
        contrasts=(
            *(contrast for _, contrast, _ in judged),
            *(contrast for contrast in others if contrast.question + contrast.of not in known),
        ),
        tables=(results_table(measured),),
        charts=tuple(chart(measured, kind) for kind in KINDS),
    )


def words(judged: Sequence[tuple[str, Contrast, Verdict]], measured: Measured) -> tuple[str, ...]:
    """Return the result as sentences: one for each goal, and the accuracy of dense attention."""
    found = [accuracy(measured, "dense", TRAINED, kind) for kind in KINDS]
    shares = ", ".join(f"{percent(share)} % ({label})" for share, label in zip(found, KINDS.values(), strict=True))
    lines = [f"Dense attention writes these shares of the solutions exactly: {shares}."]
    for text, contrast, verdict in judged:
        scale, digits, unit = (100, 1, "points") if contrast.unit == "points" else (100, 2, "%")
        ends = contrast.ends
        lines.append(
            f"{text}: {verdict}. The difference is {scale * contrast.difference:+.{digits}f} {unit}, "
            f"{scale * ends.low:+.{digits}f} to {scale * ends.high:+.{digits}f} by the wider of both {contrast.confidence:.0%} intervals."
        )
    return (
        *lines,
        f"Training used {LABELS[TRAINED]} of the positions. Other budgets were not trained, and block means and the most attended positions "
        "were not trained at any budget.",
    )


def accuracy(measured: Measured, arm: Arm, budget: int, kind: str) -> float:
    """Return the share of exactly written solutions, as the mean over the seeds."""
    return mean(mean(part(seed, arm, budget)[kind]["right"]) for seed in measured[arm])


def results_table(measured: Measured) -> Table:
    """Return a table of all arms at all budgets, as means over the seeds."""
    rows = []
    for label, budget in BUDGETS.items():
        for arm, name in ARMS.items():
            seeds = [part(seed, arm, budget) for seed in measured[arm]]
            picked = mean(mean(seed[kind]["picked"] for kind in KINDS) for seed in seeds)
            loss = mean(mean(mean(seed[kind]["loss"]) for kind in KINDS) for seed in seeds)
            shares = [accuracy(measured, arm, budget, kind) for kind in KINDS]
            rows.append((label, name, f"{picked:.1f}" if picked else "all", f"{loss:.4f}", *map(percent, shares)))
    return Table(
        title="All arms",
        heads=("budget", "attention", "positions per query", "loss", *(f"{label}, %" for label in KINDS.values())),
        rows=tuple(rows),
        note=f"Means over seeds. Loss: nats per token of thinking, answer and end-of-turn. Accuracy: share of solutions of which "
        f"every token is the most likely one. Only {LABELS[TRAINED]} of the positions was trained. Block means use the weights of "
        "dense attention. The adaptive budget and the most attended positions use the weights of the indexer's model.",
    )


def chart(measured: Measured, kind: str) -> Chart:
    """Return a chart that plots the accuracy on one kind of problem against the budget."""
    series = []
    for arm, label in ARMS.items():
        lines = [
            tuple((1 / budget, mean(part(seed, arm, budget)[kind]["right"])) for budget in BUDGETS.values())
            for seed in measured[arm]
        ]
        middle = tuple((points[0][0], mean(y for _, y in points)) for points in zip(*lines, strict=True))
        series.append(Series(label=label, points=middle, by_seed=tuple(lines)))
    return Chart(
        name=f"accuracy-{kind}",
        title=f"Exact solutions: {KINDS[kind]}",
        x="budget, as a share of the text's length",
        y="share of solutions",
        series=tuple(series),
        percent=True,
        caption="Faint lines: each seed.",
    )
