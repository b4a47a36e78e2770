"""Report the balance experiments: compute excess load and loss, apply the verdict rule, and build tables and a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import numpy as np
import torch

from rorqual.core.records import RunDir
from rorqual.evals.verdict import Verdict, together
from rorqual.lab.finding import Chart, Contrast, Series, Table, contrast_of_values
from rorqual.train import balance

Arm = Literal["none", "bias", "aux"]
ARMS: Mapping[Arm, str] = {"none": "nothing", "bias": "router bias", "aux": "auxiliary loss"}
RIVALS: tuple[Arm, ...] = ("none", "aux")
THIRD, HALF_PERCENT = 1 / 3, 0.005


def excess_load(layers: Sequence[Sequence[int]]) -> float:
    """Return the largest load divided by the mean load, minus 1, averaged over layers. 0 is perfect balance."""
    return balance.load_ratio([torch.tensor(layer) for layer in layers]) - 1


def load_contrast(arm: Arm, excess: Mapping[Arm, Sequence[float]]) -> Contrast:
    """Compare the excess load of an arm with the excess load of the router bias."""
    return contrast_of_values(
        f"largest load over mean less one: {ARMS[arm]}, then router bias",
        [[x] for x in excess[arm]],
        [[x] for x in excess["bias"]],
        unit="ratio",
    )


def third_contrast(excess: Mapping[Arm, Sequence[float]]) -> Contrast:
    """Compare the excess load of the router bias with the claimed bound. The bound is a third of the excess load
    without balancing."""
    return contrast_of_values(
        "largest load over mean less one: a third of that with nothing, then router bias",
        [[THIRD * x] for x in excess["none"]],
        [[x] for x in excess["bias"]],
        unit="ratio",
    )


def loss_contrast(arm: Arm, measurements: Sequence[Mapping[str, Any]]) -> Contrast:
    """Compare the losses of an arm and the router bias. Both losses are divided by the arm's mean loss, so a difference
    of 0.005 is half a percent."""
    scaled: dict[Arm, list[np.ndarray]] = {arm: [], "bias": []}
    for measurement in measurements:
        for side in scaled:
            scaled[side].append(
                np.asarray(measurement["loss"][side]) * len(measurement["trained"]) / sum(measurement["loss"][arm])
            )
    return contrast_of_values(
        f"held-out loss over that of the first: {ARMS[arm]}, then router bias",
        [list(x) for x in scaled[arm]],
        [list(x) for x in scaled["bias"]],
        unit="ratio",
    )


def decide(third: Contrast, losses: Mapping[Arm, Contrast]) -> Verdict:
    """Return the verdict of the experiment. Every comparison follows the rule of `rorqual.evals.verdict`.

    The claim holds if the router bias passes both comparisons. First, its excess load is less than a third of the
    excess load without balancing. Second, its loss is less than half a percent above the loss of each other arm. The
    claim does not hold if one comparison fails. If no comparison fails but one is open, the verdict is open.
    """
    return together([third.judge(0.0, "below"), *(loss.judge(HALF_PERCENT, "below") for loss in losses.values())])


def words(
    excess: Mapping[Arm, Sequence[float]], losses: Mapping[Arm, Contrast], measurements: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    """Return the result of the experiment as sentences."""
    parts = [bias / none for bias, none in zip(excess["bias"], excess["none"], strict=True)]
    tokens = min(measurement["tokens"] for measurement in measurements)
    lines = [
        f"On {tokens:,} held-out tokens of each seed, the most loaded expert of a layer carries {1 + mean(excess['bias']):.2f} times "
        f"the mean load with the router bias. It is {1 + mean(excess['aux']):.2f} times with the auxiliary loss, and "
        f"{1 + mean(excess['none']):.2f} times without balancing (means over layers and seeds).",
        f"The bias leaves {min(parts):.0%} to {max(parts):.0%} of the excess load without balancing; the claim is a third.",
    ]
    for arm, contrast in losses.items():
        ends = contrast.ends
        lines.append(
            f"Held-out loss with the bias against {ARMS[arm]}: {contrast.difference:+.2%}, {ends.low:+.2%} to {ends.high:+.2%} by the "
            f"wider of both {contrast.confidence:.0%} intervals; the claim is less than {HALF_PERCENT:+.1%}."
        )
    return tuple(lines)


def arms_table(
    seeds: Sequence[int], excess: Mapping[Arm, Sequence[float]], measurements: Sequence[Mapping[str, Any]], note: str
) -> Table:
    """Return a table with one row for each arm of each seed."""
    rows = []
    for place, (seed, measurement) in enumerate(zip(seeds, measurements, strict=True)):
        for arm, label in ARMS.items():
            layers = ", ".join(f"{excess_load([layer]):.3f}" for layer in measurement["load"][arm])
            idle = min(min(layer) / mean(layer) for layer in measurement["load"][arm])
            loss = sum(measurement["loss"][arm]) / sum(measurement["trained"])
            rows.append((str(seed), label, f"{excess[arm][place]:.3f}", layers, f"{idle:.3f}", f"{loss:.5f}"))
    return Table(
        title="All runs",
        heads=(
            "seed",
            "balancing",
            "largest load over mean, less 1",
            "by layer",
            "smallest load over mean",
            "loss, nats",
        ),
        rows=tuple(rows),
        note=note,
    )


def experts_table(measurements: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of each expert's load divided by the mean load, for the first seed. The loads are sorted."""
    rows = []
    for arm, label in ARMS.items():
        for number, layer in enumerate(measurements[0]["load"][arm], start=1):
            ordered = sorted((x / mean(layer) for x in layer), reverse=True)
            rows.append((label, str(number), " ".join(f"{x:.2f}" for x in ordered)))
    return Table(
        title="Load of each expert over the mean, busiest first (first seed)",
        heads=("balancing", "layer", "load over mean"),
        rows=tuple(rows),
    )


def training_chart(runs: Sequence[Mapping[Arm, Path]], window: int = 10) -> Chart:
    """Return a chart of the most loaded expert's load during training, averaged over `window` steps."""
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
        title="The most loaded expert over training",
        x="step",
        y="largest load over mean",
        series=tuple(series),
        caption=f"Largest load over mean load of a layer in the tokens of an update, averaged over layers and {window} steps. "
        "1 is perfect balance. Faint lines: each seed.",
    )
