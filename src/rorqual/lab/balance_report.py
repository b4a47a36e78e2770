"""The results of `balance`: excess load, loss, the rule of the verdict, tables and chart."""

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
    """Return the largest load over the mean load, less one, averaged over layers; 0 is perfect balance."""
    return balance.load_ratio([torch.tensor(layer) for layer in layers]) - 1


def load_contrast(arm: Arm, excess: Mapping[Arm, Sequence[float]]) -> Contrast:
    """Contrast the excess load of an arm with that of the bias."""
    return contrast_of_values(
        f"largest load over mean less one: {ARMS[arm]}, then router bias",
        [[x] for x in excess[arm]],
        [[x] for x in excess["bias"]],
        unit="ratio",
    )


def third_contrast(excess: Mapping[Arm, Sequence[float]]) -> Contrast:
    """Contrast a third of the excess load without balancing, the claimed bound, with that of the bias."""
    return contrast_of_values(
        "largest load over mean less one: a third of that with nothing, then router bias",
        [[THIRD * x] for x in excess["none"]],
        [[x] for x in excess["bias"]],
        unit="ratio",
    )


def loss_contrast(arm: Arm, found: Sequence[Mapping[str, Any]]) -> Contrast:
    """Contrast the losses of an arm and the bias, both over the arm's loss: a difference of 0.005 is half a percent."""
    scaled: dict[Arm, list[np.ndarray]] = {arm: [], "bias": []}
    for one in found:
        for side in scaled:
            scaled[side].append(np.asarray(one["loss"][side]) * len(one["trained"]) / sum(one["loss"][arm]))
    return contrast_of_values(
        f"held-out loss over that of the first: {ARMS[arm]}, then router bias",
        [list(x) for x in scaled[arm]],
        [list(x) for x in scaled["bias"]],
        unit="ratio",
    )


def decide(third: Contrast, losses: Mapping[Arm, Contrast]) -> Verdict:
    """Return the verdict, with every comparison by the rule of `rorqual.evals.verdict`.

    It holds if the bias's excess load is below a third of that without balancing, and its loss less than half a
    percent above that of either arm. It does not hold if one of these fails. Otherwise it is open.
    """
    return together([third.judge(0.0, "below"), *(one.judge(HALF_PERCENT, "below") for one in losses.values())])


def words(
    excess: Mapping[Arm, Sequence[float]], losses: Mapping[Arm, Contrast], found: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    """Return the result in sentences."""
    parts = [bias / none for bias, none in zip(excess["bias"], excess["none"], strict=True)]
    tokens = min(one["tokens"] for one in found)
    lines = [
        f"On {tokens:,} held-out tokens of each seed, the most loaded expert of a layer carries {1 + mean(excess['bias']):.2f} times "
        f"the mean load with the router bias. It is {1 + mean(excess['aux']):.2f} times with the auxiliary loss, and "
        f"{1 + mean(excess['none']):.2f} times without balancing (means over layers and seeds).",
        f"The excess load with the bias is {min(parts):.0%} to {max(parts):.0%} of that without; the claim is a third.",
    ]
    for arm, contrast in losses.items():
        ends = contrast.ends
        lines.append(
            f"Held-out loss with the bias against {ARMS[arm]}: {contrast.difference:+.2%}, {ends.low:+.2%} to {ends.high:+.2%} by the "
            f"wider of both {contrast.confidence:.0%} intervals; the claim is less than {HALF_PERCENT:+.1%}."
        )
    return tuple(lines)


def arms_table(
    seeds: Sequence[int], excess: Mapping[Arm, Sequence[float]], found: Sequence[Mapping[str, Any]], note: str
) -> Table:
    """Return one row for each arm of each seed."""
    rows = []
    for place, (seed, one) in enumerate(zip(seeds, found, strict=True)):
        for arm, label in ARMS.items():
            layers = ", ".join(f"{excess_load([layer]):.3f}" for layer in one["load"][arm])
            idle = min(min(layer) / mean(layer) for layer in one["load"][arm])
            loss = sum(one["loss"][arm]) / sum(one["trained"])
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


def experts_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """Return the sorted loads of all experts over the mean, for the first seed."""
    rows = []
    for arm, label in ARMS.items():
        for number, layer in enumerate(found[0]["load"][arm], start=1):
            ordered = sorted((x / mean(layer) for x in layer), reverse=True)
            rows.append((label, str(number), " ".join(f"{x:.2f}" for x in ordered)))
    return Table(
        title="Load of each expert over the mean, busiest first (first seed)",
        heads=("balancing", "layer", "load over mean"),
        rows=tuple(rows),
    )


def training_chart(runs: Sequence[Mapping[Arm, Path]], window: int = 10) -> Chart:
    """Return the load of the most loaded expert over training, from the runs' metrics, averaged over `window` steps."""
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
