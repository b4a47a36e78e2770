"""What the trainings of `balance` show together: excess load, loss, the verdict's rule, tables and chart."""

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
    """Largest load over mean less one, mean over layers: 0 is perfect balance."""
    return balance.load_ratio([torch.tensor(layer) for layer in layers]) - 1


def load_contrast(arm: Arm, excess: Mapping[Arm, Sequence[float]]) -> Contrast:
    """The bias's excess load against an arm's."""
    return contrast_of_values(
        f"largest load over mean less one: {ARMS[arm]}, then router bias",
        [[x] for x in excess[arm]],
        [[x] for x in excess["bias"]],
        unit="ratio",
    )


def third_contrast(excess: Mapping[Arm, Sequence[float]]) -> Contrast:
    """The bias's excess load against a third of that without it, which is what was claimed."""
    return contrast_of_values(
        "largest load over mean less one: a third of that with nothing, then router bias",
        [[THIRD * x] for x in excess["none"]],
        [[x] for x in excess["bias"]],
        unit="ratio",
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
    )


def decide(third: Contrast, losses: Mapping[Arm, Contrast]) -> Verdict:
    """Holds: the excess load below a third of that without, and the loss less than half a percent above either arm's, each by the rule
    of `rorqual.evals.verdict`. Does not hold: one of them beyond it by the same rule. Else open.
    """
    return together([third.judge(0.0, "below"), *(one.judge(HALF_PERCENT, "below") for one in losses.values())])


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
        ends = contrast.ends
        lines.append(
            f"Held-out loss with the bias against {ARMS[arm]}: {contrast.difference:+.2%}, {ends.low:+.2%} to {ends.high:+.2%} by the "
            f"wider of both {contrast.confidence:.0%} intervals; less than {HALF_PERCENT:+.1%} was claimed."
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
