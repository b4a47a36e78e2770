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

from PIL import Image

from rorqual.report.chart import Chart, Panel, Series, draw

ROOT = Path(__file__).parent.parent
RESULT, PICTURE = ROOT / "docs" / "results" / "teach.json", ROOT / "docs" / "pictures" / "teach-cases.png"
TITLES = {"banking77": "77 labels", "snips": "Fields as JSON", "svamp": "Word problems"}
MINUTES = 10
AFTER, ALONE = "taught model", "taught model without calculator"
Points = Mapping[str, Sequence[float]]
"""The accuracies of a case in percent, by the name of what answered: one for each seed."""


def points(rows: Mapping[str, Any]) -> Points:
    """Return the accuracies of a case, the lowest mean first and the taught model last."""
    ordered = sorted(rows.items(), key=lambda one: (one[0] == AFTER, one[1]["right"]))
    return {
        "regular expressions" if name == "rule" else name: [100 * share for share in row["right_by_seed"]]
        for name, row in ordered
    }


def chart(cases: Mapping[str, Points]) -> Chart:
    """Return the chart: a panel for each case, a bar for each of its means, and a dot for each seed."""
    return Chart(
        name="teach-cases",
        columns=1,
        width=7.2,
        height=1.9,
        panels=[_case_panel(TITLES[case], rows, last=case == list(cases)[-1]) for case, rows in cases.items()],
    )


def _case_panel(title: str, rows: Points, *, last: bool) -> Panel:
    bars = [
        Series(
            label="",
            points=[(place, fmean(values))],
            by_seed=[[(place, value)] for value in values],
            texts=[f"{fmean(values):.1f}"],
            colour="after" if name in (AFTER, ALONE) else "before",
        )
        for place, (name, values) in enumerate(reversed(rows.items()))
    ]
    axis = "right, % of 200 test examples; each dot is a seed, and the bar is their mean" if last else ""
    return Panel(title=title, kind="bars", flip=True, labels=list(reversed(rows)), limits=(0, 100), y=axis, series=bars)


def main() -> None:
    summary = json.loads(RESULT.read_bytes())["summary"]
    cases = {case: points(summary[f"{case}, {MINUTES} minutes"]) for case in TITLES}
    Image.open(io.BytesIO(draw(chart(cases)).light)).quantize(64).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
