"""Draw docs/pictures/teach-ladder.png from docs/results/rungs.json and teach.json: the accuracy of each rung of `rorqual teach` against
the time of an answer, for three tasks.

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
RESULTS, PICTURE = ROOT / "docs" / "results", ROOT / "docs" / "pictures" / "teach-ladder.png"
TITLES = {"banking77": "77 labels", "snips": "Fields as JSON", "svamp": "Word problems"}
MINUTES, TESTS, FASTEST, SLOWEST = 10, 200, 0.01, 3_000
AFTER, ALONE = "taught model", "taught model without calculator"
MODEL = "language model"
LEFT_OUT = ("nearest neighbour", "nearest neighbour, embeddings")
"""Rungs whose names would hide those of others."""
Point = tuple[float, Sequence[float]]
"""Milliseconds of one core for an answer, and the accuracy of each seed."""


def points(case: str) -> dict[str, Point]:
    """Return the time and the accuracies of each rung of a case, by its name."""
    rungs = json.loads((RESULTS / "rungs.json").read_bytes())["summary"][case]
    times = {name: row["answer_core_milliseconds"] for name, row in rungs.items()}
    embeds = times["nearest neighbour, embeddings"]  # logistic regression was measured when the embeddings were known
    found = {
        name: (max(times[name], embeds if "embeddings" in name else 0.0), row["right_by_seed"])
        for name, row in rungs.items()
        if name not in LEFT_OUT
    }
    return {"regular expressions" if name == "rule" else name: row for name, row in found.items()} | {
        MODEL: model(case)
    }


def model(case: str) -> Point:
    """Return the taught model's time and accuracies. Its time is that of the stage in which it answered the test examples."""
    taught = json.loads((RESULTS / "teach.json").read_bytes())
    runs = [one for one in taught["runs"] if (one["case"], one["minutes"]) == (case, MINUTES)]
    seconds = fmean(one["stages"]["measure"][1] / (1 + (ALONE in one["right"])) for one in runs)
    return 1000 * seconds / TESTS, taught["summary"][f"{case}, {MINUTES} minutes"][AFTER]["right_by_seed"]


def case_panel(title: str, rows: Mapping[str, Point], *, last: bool) -> Panel:
    """Return the panel of a case: for each rung the mean of its seeds, and a line from the lowest to the highest."""
    best = max(rows, key=lambda name: fmean(rows[name][1]))
    outside = Series(label="", points=[(FASTEST / 2, -1), (SLOWEST, -1)])  # all panels have the same times
    series = [
        Series(
            label="",
            points=[(max(FASTEST, time), fmean(values))],
            low=[min(values)],
            high=[max(values)],
            texts=[name],
            colour="after" if name == best else "on" if name == MODEL else "before",
        )
        for name, (time, values) in sorted(rows.items(), key=lambda item: -fmean(item[1][1]))
    ]
    ticks: list[Any] = [(10.0**power, f"{10.0**power:g}") for power in range(-2, 5)]
    along = "milliseconds of one core for an answer" if last else ""
    return Panel(
        title=title,
        kind="points",
        log="x",
        percent=True,
        x=along,
        x_ticks=ticks,
        limits=(-0.08, 1),
        series=[outside, *series],
    )


def main() -> None:
    panels = [case_panel(TITLES[case], points(case), last=case == list(TITLES)[-1]) for case in TITLES]
    chart = Chart(name="teach-ladder", columns=1, width=7.2, height=2.3, panels=panels)
    Image.open(io.BytesIO(draw(chart).light)).quantize(64).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
