"""What the trainings of `balance` show together: excess load, loss, the verdict's rule, tables and chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import numpy as np
import torch

from rorqual.core.records import RunDir
from rorqual.evals.stats import t_interval
from rorqual.lab.finding import Chart, Contrast, Series, Table, Verdict, contrast_of_values
from rorqual.train import balance

Arm = Literal["none", "bias", "aux"]
ARMS: Mapping[Arm, str] = {"none": "nothing", "bias": "router bias", "aux": "auxiliary loss"}
RIVALS: tuple[Arm, ...] = ("none", "aux")
THIRD, HALF_PERCENT = 1 / 3, 0.005
CONFIDENCE = 0.95


def excess_load(layers: Sequence[Sequence[int]]) -> float:
    """Largest load over mean less one, mean over layers: 0 is perfect balance."""
    return balance.load_ratio([torch.tensor(layer) for layer in layers]) - 1


def load_contrast(arm: Arm, excess: Mapping[Arm, Sequence[float]]) -> Contrast:
    """The bias's excess load against an arm's."""
    return contrast_of_values(
        f"largest load over mean less one: {ARMS[arm]}, then router bias",
        [[x] for x in excess[arm]],
        [[x] for x in excess["bias"]],
        unit="ratio",
        confidence=CONFIDENCE,
    )


def loss_contrast(arm: Arm, found: Sequence[Mapping[str, Any]]) -> Contrast:
    """The bias's loss against an arm's, both divided by that arm's: a difference of 0.005 is half a percent."""
    scaled: dict[Arm, list[np.ndarray]] = {arm: [], "bias": []}
    for one in found:
        for side in scaled:
            scaled[side].append(np.asarray(one["loss"][side]) * len(one["trained"]) / sum(one["loss"][arm]))
    return contrast_of_values(
        f"held-out loss over that of the first: {ARMS[arm]}, then router bias",
        [list(x) for x in scaled[arm]],
        [list(x) for x in scaled["bias"]],
        unit="ratio",
        confidence=CONFIDENCE,
    )


def bounds(contrast: Contrast) -> tuple[float, float]:
    """One-sided 95 % bounds of a difference: the wider of the bootstrap's interval and Student's over seeds.

    Three seeds resampled never lie outside the three: the bootstrap alone would be too sure.
    """
    differences = [b - a for a, b in contrast.by_seed]
    if len(differences) < 2:
        return contrast.low, contrast.high
    student = t_interval(differences, 2 * CONFIDENCE - 1)  # its ends are one-sided bounds at CONFIDENCE
    return min(contrast.low, student.low), max(contrast.high, student.high)


def decide(excess: Mapping[Arm, Sequence[float]], losses: Mapping[Arm, Contrast]) -> Verdict:
    """Holds: in every seed at most a third of the excess load, and the loss's upper bound at most half a percent above either arm's.

    Does not hold: more than a third in every seed, or a lower bound of the loss beyond half a percent. Else open.
    """
    thirds = [bias <= THIRD * none for bias, none in zip(excess["bias"], excess["none"], strict=True)]
    ends = [bounds(contrast) for contrast in losses.values()]
    if not any(thirds) or any(low > HALF_PERCENT for low, _ in ends):
        return "does not hold"
    return "holds" if all(thirds) and all(high <= HALF_PERCENT for _, high in ends) else "open"


def words(
    excess: Mapping[Arm, Sequence[float]], losses: Mapping[Arm, Contrast], found: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    """What came out, in sentences."""
    parts = [bias / none for bias, none in zip(excess["bias"], excess["none"], strict=True)]
    tokens = min(one["tokens"] for one in found)
    lines = [
        f"On {tokens:,} held-out tokens of each seed the busiest expert of a layer carries {1 + mean(excess['bias']):.2f} times the "
        f"mean load with the router bias, {1 + mean(excess['aux']):.2f} times with the auxiliary loss, and "
        f"{1 + mean(excess['none']):.2f} times where nothing evens it (means over layers and seeds).",
        f"The excess over the mean with the bias is {min(parts):.0%} to {max(parts):.0%} of that without; a third was claimed.",
    ]
    for arm, contrast in losses.items():
        low, high = bounds(contrast)
        lines.append(
            f"Held-out loss with the bias against {ARMS[arm]}: {contrast.difference:+.2%}, one-sided 95 % bounds {low:+.2%} and "
            f"{high:+.2%}; at most {HALF_PERCENT:+.1%} was claimed."
        )
    return tuple(lines)


def arms_table(
    seeds: Sequence[int], excess: Mapping[Arm, Sequence[float]], found: Sequence[Mapping[str, Any]], note: str
) -> Table:
    """Every arm of every seed."""
    rows = []
    for place, (seed, one) in enumerate(zip(seeds, found, strict=True)):
        for arm, label in ARMS.items():
            layers = ", ".join(f"{excess_load([layer]):.3f}" for layer in one["load"][arm])
            idle = min(min(layer) / mean(layer) for layer in one["load"][arm])
            loss = sum(one["loss"][arm]) / sum(one["trained"])
            rows.append((str(seed), label, f"{excess[arm][place]:.3f}", layers, f"{idle:.3f}", f"{loss:.5f}"))
    return Table(
        title="Every training",
        heads=(
            "seed",
            "evened by",
            "largest load over mean, less 1",
            "by layer",
            "smallest load over mean",
            "loss, nats",
        ),
        rows=tuple(rows),
        note=note,
    )


def experts_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """The load of each expert over the mean, sorted, first seed: what the one number hides."""
    rows = []
    for arm, label in ARMS.items():
        for number, layer in enumerate(found[0]["load"][arm], start=1):
            ordered = sorted((x / mean(layer) for x in layer), reverse=True)
            rows.append((label, str(number), " ".join(f"{x:.2f}" for x in ordered)))
    return Table(
        title="Load of each expert over the mean, busiest first (first seed)",
        heads=("evened by", "layer", "load over mean"),
        rows=tuple(rows),
    )


def training_chart(runs: Sequence[Mapping[Arm, Path]], window: int = 10) -> Chart:
    """The busiest expert's load over training, from the runs' own metrics, in means over `window` steps."""
    series = []
    for arm, label in ARMS.items():
        lines = []
        for paths in runs:
            loads = [record["load_max_over_mean"] for record in RunDir(paths[arm]).metrics()]
            starts = range(0, len(loads), window)
            lines.append(tuple((float(start), mean(loads[start : start + window])) for start in starts))
        middle = tuple((points[0][0], mean(y for _, y in points)) for points in zip(*lines))
        series.append(Series(label=label, points=middle, by_seed=tuple(lines)))
    return Chart(
        name="load",
        title="The busiest expert over training",
        x="step",
        y="largest load over mean",
        series=tuple(series),
        caption=f"Largest load over mean load of a layer in each update's tokens, mean over layers and over {window} steps; "
        "1 is perfect balance. Faint: each seed.",
    )
