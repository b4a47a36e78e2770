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
from rorqual.teach.place import AFTER, ALONE

ROOT = Path(__file__).parent.parent
RESULT, PICTURE = ROOT / "docs" / "results" / "teach.json", ROOT / "docs" / "pictures" / "teach-cases.png"
TITLES = {"banking77": "77 labels", "snips": "Fields as JSON", "svamp": "Word problems"}
MINUTES = 10
Points = Mapping[str, Sequence[float]]
"""The accuracies of a case in percent, by the name of what answered: one for each seed."""


def points(rows: Mapping[str, Any]) -> Points:
    """Return the accuracies of a case, the lowest mean first and the taught model last."""
    ordered = sorted(rows.items(), key=lambda one: (one[0] == AFTER, one[1]["right"]))
    return {
        "regular expressions" if name == "rule" else name: [100 * share for share in row["right_by_seed"]]
        for name, row in ordered
    }


def draw(cases: Mapping[str, Points], theme: Theme) -> Figure:
    figure, axes = panels(len(cases), 1, 7.2, 1.75)
    for axis, (case, rows) in zip(axes, cases.items(), strict=True):
        _draw_case(axis, TITLES[case], rows, theme)
    axes[-1].set_xlabel("right, % of 200 test examples; each dot is a seed, and the bar is their mean")
    return figure


def _draw_case(axis: Axes, title: str, rows: Points, theme: Theme) -> None:
    for height, (name, values) in enumerate(rows.items()):
        own = name in (AFTER, ALONE)
        colour = theme.after if own else theme.before
        axis.barh(height, fmean(values), height=0.62, color=colour, alpha=0.45 if name == AFTER else 0.25)
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
    summary = json.loads(RESULT.read_bytes())["summary"]
    cases = {case: points(summary[f"{case}, {MINUTES} minutes"]) for case in TITLES}
    picture = Picture("teach-cases", "", "", lambda theme: draw(cases, theme))
    Image.open(io.BytesIO(png(picture, LIGHT))).quantize(64).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
