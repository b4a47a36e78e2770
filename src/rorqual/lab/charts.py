"""The charts of an experiment: bars of a quantity, curves of training, and one quantity over another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rorqual.core.records import RunDir
from rorqual.evals.stats import difference_over_seeds
from rorqual.evals.verdict import CONFIDENCE
from rorqual.report.chart import Chart, Series

Readings = Mapping[str, Mapping[str, Mapping[str, Mapping[Any, float]]]]
"""What was measured in one seed, as readings[quantity][arm][group][item]. An item is a problem, a document or a run."""
POINTS = 40
"""Number of points of a training curve. Each is the mean of a part of the steps."""


def mean_of(readings: Readings, quantity: str, arm: str, group: str = "") -> float:
    """Return the mean of a quantity over the items of a group, or over those of the first group. It is NaN without items."""
    groups = readings[quantity][arm]
    values = groups.get(group or next(iter(groups)), {})
    return float(np.mean([*values.values()])) if values else float("nan")


@dataclass(frozen=True)
class Bars:
    """Bars of a quantity in each group, one for each arm. Shares have 99 % intervals."""

    quantity: str
    shares: bool = True

    def drawn(self, seeds: Sequence[Readings], places: Sequence[Path], labels: Mapping[str, str]) -> Chart:
        """Return the chart."""
        groups = [*next(iter(seeds[0][self.quantity].values()))]
        series = []
        for arm in seeds[0][self.quantity]:
            lines = [
                [(float(at), mean_of(one, self.quantity, arm, group)) for at, group in enumerate(groups)]
                for one in seeds
            ]
            ends = [_ends([one[self.quantity][arm][group] for one in seeds]) for group in groups] if self.shares else []
            bounds = {"low": tuple(low for low, _ in ends), "high": tuple(high for _, high in ends)}
            series.append(_series(labels.get(arm, arm), lines).model_copy(update=bounds))
        return Chart(
            name=self.quantity,
            title=self.quantity,
            kind="bars",
            labels=tuple(groups),
            series=tuple(series),
            percent=self.shares,
            caption=f"Bars: means over seeds{' with 99 % intervals' if self.shares else ''}. Dots: each seed.",
        )


@dataclass(frozen=True)
class Curves:
    """A metric over the steps of training. `lines` maps a label to the runs, one after the other, and to the metric's name."""

    name: str
    title: str
    y: str
    lines: Mapping[str, tuple[tuple[str, ...], str]]
    percent: bool = False

    def drawn(self, seeds: Sequence[Readings], places: Sequence[Path], labels: Mapping[str, str]) -> Chart:
        """Return the chart."""
        series = []
        for label, (runs, metric) in self.lines.items():
            lines = []
            for place in places:
                records = [record for run in runs for record in RunDir(place / run).metrics()]
                points = [
                    (step, record[metric]) for step, record in enumerate(records, 1) if record.get(metric) is not None
                ]
                parts = np.array_split(np.asarray(points, float), min(POINTS, len(points)) or 1)
                lines.append([tuple(part.mean(0).tolist()) for part in parts if len(part)])
            series.append(_series(label, lines))
        caption = "Strong lines: mean over seeds. Faint lines: each seed."
        return Chart(
            name=self.name,
            title=self.title,
            x="step",
            y=self.y,
            series=tuple(series),
            percent=self.percent,
            caption=caption,
        )


@dataclass(frozen=True)
class Tradeoff:
    """A quantity over another one. `lines` maps a label to the arms that a line connects."""

    name: str
    x: str
    y: str
    lines: Mapping[str, Sequence[str]]
    group: str = ""
    percent: bool = True

    def drawn(self, seeds: Sequence[Readings], places: Sequence[Path], labels: Mapping[str, str]) -> Chart:
        """Return the chart."""
        series = [
            _series(
                label,
                [[(mean_of(one, self.x, arm), mean_of(one, self.y, arm, self.group)) for arm in arms] for one in seeds],
            )
            for label, arms in self.lines.items()
        ]
        return Chart(
            name=self.name,
            title=f"{self.y} over {self.x}" + (f": {self.group}" if self.group else ""),
            x=self.x,
            y=self.y,
            series=tuple(series),
            percent=self.percent,
            caption="Means over seeds. Faint lines: each seed.",
        )


def _ends(values: Iterable[Mapping[Any, float]]) -> tuple[float, float]:
    arrays = [np.asarray([*one.values()], float) for one in values]
    interval = difference_over_seeds([np.zeros(len(one)) for one in arrays], arrays, CONFIDENCE, 10_000).interval
    return max(0.0, interval.low), interval.high


def _series(label: str, lines: Sequence[Sequence[tuple[float, float]]]) -> Series:
    """Return the means of lines with one line per seed."""
    means = (np.mean(points, axis=0).tolist() for points in zip(*lines, strict=False))
    return Series(label=label, points=tuple(map(tuple, means)), by_seed=tuple(map(tuple, lines)))
