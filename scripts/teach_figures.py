"""Draw docs/pictures/teach-cases.png from docs/results/teach.json: the accuracy of each seed, for three tasks.

python scripts/teach_figures.py
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from rorqual.evals.pictures import LIGHT, Picture, Theme, panels, png

ROOT = Path(__file__).parent.parent
RESULT, PICTURE = ROOT / "docs" / "results" / "teach.json", ROOT / "docs" / "pictures" / "teach-cases.png"
TITLES = {"banking77": "77 labels", "snips": "Fields as JSON", "svamp": "Word problems"}
MINUTES = 10
TAUGHT, ALONE = "taught model", "taught model without calculator"
MOST = "base, as many examples as fit"
Points = Mapping[str, Sequence[float]]
"""The accuracies of a case in percent, by the name of what answered: one for each seed."""


def points(runs: Sequence[Mapping[str, Any]], case: str) -> Points:
    """Return the accuracies of a case, the lowest mean first and the taught model last."""
    found: dict[str, list[float]] = {}
    for run in runs:
        if (run["case"], run["minutes"]) == (case, MINUTES):
            for name, right in run["right"].items():
                found.setdefault(_title(name), []).append(100 * right.count("1") / len(right))
    return dict(sorted(found.items(), key=lambda one: (one[0] == TAUGHT, fmean(one[1]))))


def _title(name: str) -> str:
    if name.startswith("base, ") and name not in ("base, no examples", "base, 4 examples"):
        return MOST
    return "regular expressions" if name == "rule" else name


def draw(cases: Mapping[str, Points], theme: Theme) -> Figure:
    figure, axes = panels(len(cases), 1, 7.2, 1.75)
    for axis, (case, rows) in zip(axes, cases.items(), strict=True):
        _draw_case(axis, TITLES[case], rows, theme)
    axes[-1].set_xlabel("right, % of 200 test examples; each dot is a seed, and the bar is their mean")
    return figure


def _draw_case(axis: Axes, title: str, rows: Points, theme: Theme) -> None:
    for height, (name, values) in enumerate(rows.items()):
        own = name in (TAUGHT, ALONE)
        colour = theme.after if own else theme.before
        axis.barh(height, fmean(values), height=0.62, color=colour, alpha=0.25 if name != TAUGHT else 0.45)
        axis.plot(values, [height] * len(values), "o", color=colour, markersize=3.5)
        axis.annotate(
            f"{fmean(values):.1f}",
            (max(values), height),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=theme.ink if own else theme.faint,
        )
    axis.set(title=title, xlim=(0, 100), yticks=range(len(rows)), yticklabels=rows)
    axis.grid(visible=False, axis="y")


def main() -> None:
    runs = json.loads(RESULT.read_bytes())["runs"]
    cases = {case: rows for case in TITLES if (rows := points(runs, case))}
    picture = Picture("teach-cases", "", "", lambda theme: draw(cases, theme))
    Image.open(io.BytesIO(png(picture, LIGHT))).quantize(64).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
