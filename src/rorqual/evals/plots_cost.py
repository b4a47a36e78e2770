"""Pictures of the cost of a run: tokens and FLOPs, then measured time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from rorqual.evals.pictures import Picture, Theme, panels
from rorqual.evals.reading import Findings, StageCost

CLOCK_PICTURE = "clock"
"""Name prefix of pictures that show measured time. Only these pictures differ between two runs with the same seed."""


def _draw_bars(
    theme: Theme, stages: Sequence[StageCost], measures: Sequence[tuple[str, Sequence[float], str]]
) -> Figure:
    figure, axes = panels(len(measures), len(measures), 7.4 / len(measures), 0.8 + 0.28 * len(stages), sharey=True)
    places = np.arange(len(stages), dtype=float)[::-1]
    for axis, (title, values, form) in zip(axes, measures, strict=True):
        axis.barh(places, values, color=theme.after, height=0.62)
        for place, value in zip(places, values, strict=True):
            axis.text(value, place, " " + form.format(value), va="center", fontsize=8, color=theme.ink)
        axis.set_title(title)
        axis.set_xlim(0, max([*values, 1e-9]) * 1.32)
        axis.grid(visible=False)
        axis.set_xticks([])
        axis.spines["bottom"].set_visible(False)
    axes[0].set_yticks(places, [stage.name for stage in stages], color=theme.ink, fontsize=9)
    return figure


def cost(findings: Findings) -> Picture:
    """Plot tokens and FLOPs by stage."""
    stages = [stage for stage in findings.summary.stages if stage.tokens]
    measures = [
        ("Tokens, millions", [stage.tokens / 1e6 for stage in stages], "{:.2f}"),
        ("Floating-point operations, 10¹²", [stage.flops / 1e12 for stage in stages], "{:.2f}"),
    ]
    alt = "Bars by stage: " + "; ".join(f"{s.name} {s.tokens:.3g} tokens, {s.flops:.3g} FLOPs" for s in stages) + "."
    caption = "Tokens and FLOPs by stage. They follow from the recipe and do not depend on the machine."
    return Picture("cost", alt, caption, partial(_draw_bars, stages=stages, measures=measures))


def clock(findings: Findings) -> Picture:
    """Plot core-seconds and wall-clock seconds by stage."""
    stages = findings.summary.stages
    measures = [
        ("Core-seconds", [stage.core_seconds for stage in stages], "{:.0f}"),
        ("Wall-clock seconds", [stage.seconds for stage in stages], "{:.0f}"),
    ]
    alt = "Bars by stage: " + "; ".join(f"{s.name} {s.core_seconds:.0f} core-seconds" for s in stages) + "."
    caption = "Measured time by stage. Unlike tokens and FLOPs, it differs between runs of one seed."
    return Picture(CLOCK_PICTURE, alt, caption, partial(_draw_bars, stages=stages, measures=measures))
