"""The report's pictures. Each public function returns one `Picture` of the findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rorqual.core.records import Thinking
from rorqual.evals.evaluation import Evaluation, Row
from rorqual.evals.pictures import Picture, Theme, panels
from rorqual.evals.plots_cost import clock, cost
from rorqual.evals.plots_students import student_pictures
from rorqual.evals.reading import Findings
from rorqual.evals.series import draw_series, ends

SETTINGS: tuple[tuple[str, Thinking, str], ...] = (
    ("before", "auto", "before GRPO, own choice"),
    ("before", "on", "before GRPO, made to think"),
    ("after", "auto", "after GRPO, own choice"),
    ("after", "off", "after GRPO, answering at once"),
    ("after", "on", "after GRPO, made to think"),
)
BASELINE = "best baseline"
MARKERS = ("o", "^", "o", "s", "^")
HOLLOW = 2
"""The first `HOLLOW` of the `SETTINGS` describe the model before GRPO. They are drawn with hollow markers."""


def pictures(findings: Findings) -> dict[str, Picture]:
    """Return all pictures of the report by name. A model without routed experts has no expert pictures."""
    drawn = [
        learning_curves(findings),
        accuracy(findings),
        accuracy_by_level(findings),
        what_changed(findings),
        thinking_over_training(findings),
        *([experts(findings), load(findings)] if findings.experts.layers else []),
        *(student_pictures(findings) if findings.students else []),
        cost(findings),
        clock(findings),
    ]
    return {picture.name: picture for picture in drawn}


def learning_curves(findings: Findings) -> Picture:
    """Plot the SFT loss and the GRPO reward over steps."""

    def draw(theme: Theme) -> Figure:
        figure, (left, right) = panels(2, 2, 3.7, 2.7)
        wanted = [
            (("loss/next_token", "loss"), theme.after, "next token"),
            (("loss/mtp",), theme.off, "token after it (MTP)"),
        ]
        draw_series(left, theme, findings.sft, wanted)
        left.set_title("Worked solutions: loss")
        left.set_ylabel("nats per token")
        left.set_ylim(bottom=0)
        draw_series(right, theme, findings.grpo, [(("reward",), theme.after, "")])
        right.set_title("GRPO: reward of rollouts")
        right.set_ylabel("mean reward")
        right.set_ylim(0, 1)
        return figure

    alt = (
        f"Two learning curves. Fine-tuning loss went from {ends(findings.sft, 'loss/next_token', 'loss')}; "
        f"GRPO reward went from {ends(findings.grpo, 'reward')}."
    )
    caption = "Faint lines: each step. Strong lines: a running mean over a twentieth of the run."
    return Picture("learning-curves", alt, caption, draw)


def _colours(theme: Theme) -> tuple[str, ...]:
    return theme.before, theme.on, theme.after, theme.off, theme.on


def _errors(rows: Sequence[Row]) -> np.ndarray:
    """Return the error bars for matplotlib [2, rows]: the distances from each accuracy to the ends of its interval."""
    return np.array([[r.accuracy - r.interval.low for r in rows], [r.interval.high - r.accuracy for r in rows]]).clip(0)


def _legend(figure: Figure, axis: Axes, columns: int) -> None:
    """Draw a legend above all panels, with the settings in order and the baseline last."""
    handles, labels = axis.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda place: labels[place] == BASELINE)
    chosen = [handles[place] for place in order], [labels[place] for place in order]
    figure.legend(*chosen, loc="outside upper left", ncols=columns)


def accuracy(findings: Findings) -> Picture:
    """Plot held-out accuracy by family in the five `SETTINGS`. A setting is a thinking mode before or after GRPO."""
    families = findings.families
    tables = [{row.family: row for row in findings.evaluations[w, m].rows("family")} for w, m, _ in SETTINGS]

    def draw(theme: Theme) -> Figure:
        figure, (axis,) = panels(1, 1, 7.4, 0.9 + 0.62 * len(families))
        places = np.arange(len(families), dtype=float)[::-1]
        for index, (table, (_, _, label)) in enumerate(zip(tables, SETTINGS, strict=True)):
            rows = [table[family] for family in families]
            colour = _colours(theme)[index]
            axis.errorbar(
                [row.accuracy for row in rows],
                places + 0.3 - 0.15 * index,
                xerr=_errors(rows),
                fmt=MARKERS[index],
                color=colour,
                markerfacecolor=theme.ground if index < HOLLOW else colour,
                markersize=5.5,
                elinewidth=1.5,
                label=label,
            )
        best = [tables[1][family].best[1] for family in families]
        for place, value in zip(places, best, strict=True):
            axis.plot([value, value], [place - 0.4, place + 0.4], color=theme.ink, linestyle=":", linewidth=1.3)
        axis.plot([], [], color=theme.ink, linestyle=":", linewidth=1.3, label=BASELINE)
        axis.set_yticks(places, families, color=theme.ink, fontsize=9)
        axis.grid(axis="y", visible=False)
        axis.set_xlim(-0.02, 1.02)
        axis.set_ylim(-0.6, len(families) - 0.4)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        _legend(figure, axis, 3)
        return figure

    changes = "; ".join(
        f"{f} {tables[0][f].accuracy:.0%} to {tables[2][f].accuracy:.0%} (before GRPO, made to think: {tables[1][f].accuracy:.0%})"
        for f in families
    )
    alt = f"Held-out accuracy per family before and after GRPO, by the model's own choice: {changes}."
    caption = "Accuracy on held-out problems, with 95 % Wilson intervals. All settings use the same problems."
    return Picture("accuracy", alt, caption, draw)


def accuracy_by_level(findings: Findings) -> Picture:
    """Plot held-out accuracy by level, one panel per family."""
    families = findings.families
    tables = [findings.evaluations[when, mode].rows("level") for when, mode, _ in SETTINGS]

    def draw(theme: Theme) -> Figure:
        columns = min(3, len(families))
        figure, axes = panels(len(families), columns, 7.4 / columns, 2.0, sharey=True)
        for axis, family in zip(axes, families, strict=True):
            _draw_levels(axis, theme, family, tables)
        axes[0].set_ylim(-0.03, 1.03)
        axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
        _legend(figure, axes[0], 3)
        figure.supxlabel("level of difficulty", fontsize=8.5, color=theme.faint)
        return figure

    alt = "One panel per family: accuracy at each level of difficulty in five settings, and the best baseline."
    return Picture("accuracy-by-level", alt, "The same answers by level of difficulty, with 95 % intervals.", draw)


def _draw_levels(axis: Axes, theme: Theme, family: str, tables: Sequence[Sequence[Row]]) -> None:
    levels = [row.level for row in tables[0] if row.family == family]
    places = np.arange(len(levels), dtype=float)
    best: list[float] = []
    for index, table in enumerate(tables):
        by_level = {row.level: row for row in table if row.family == family}
        rows = [by_level[level] for level in levels]
        best = [row.best[1] for row in rows]
        axis.errorbar(
            places + 0.08 * (index - 2),
            [row.accuracy for row in rows],
            yerr=_errors(rows),
            fmt=MARKERS[index] + "-",
            color=_colours(theme)[index],
            markerfacecolor=theme.ground if index < HOLLOW else _colours(theme)[index],
            markersize=4,
            linewidth=1.2,
            elinewidth=1,
            label=SETTINGS[index][2],
        )
    axis.plot(places, best, color=theme.ink, linestyle=":", linewidth=1.3, label=BASELINE, marker="_")
    axis.set_title(family)
    axis.set_xticks(places, levels)
    axis.set_xlim(-0.5, len(levels) - 0.5)


def what_changed(findings: Findings) -> Picture:
    """Plot three values before and after GRPO: how often the model thinks, how long it thinks, and its accuracy when it
    is made to think."""
    families = findings.families
    auto = {when: _by_family(findings.evaluations[when, "auto"]) for when in ("before", "after")}
    forced = {when: _by_family(findings.evaluations[when, "on"]) for when in ("before", "after")}

    def draw(theme: Theme) -> Figure:
        figure, axes = panels(3, 3, 7.4 / 3 + 0.05, 0.9 + 0.3 * len(families), sharey=True)
        values = [
            ("How often it thinks", {w: [auto[w][f].thought for f in families] for w in auto}),
            ("How long, in tokens", {w: [auto[w][f].thinking_length for f in families] for w in auto}),
            ("Accuracy, made to think", {w: [forced[w][f].accuracy for f in families] for w in forced}),
        ]
        lengths = [length for side in values[1][1].values() for length in side]
        places = np.arange(len(families), dtype=float)[::-1]
        for axis, (title, value) in zip(axes, values, strict=True):
            _draw_dumbbells(axis, theme, places, value["before"], value["after"])
            axis.set_title(title)
        axes[0].set_yticks(places, families, color=theme.ink, fontsize=9)
        axes[0].set_ylim(-0.6, len(families) - 0.4)
        for axis in (axes[0], axes[2]):
            axis.set_xlim(-0.04, 1.04)
            axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes[1].set_xlim(0, 1.12 * max(*lengths, 1.0))
        _legend(figure, axes[0], 2)
        return figure

    changes = "; ".join(
        f"{f}: share that thinks {auto['before'][f].thought:.0%} to {auto['after'][f].thought:.0%}, accuracy when made to think "
        f"{forced['before'][f].accuracy:.0%} to {forced['after'][f].accuracy:.0%}"
        for f in families
    )
    caption = "Before and after GRPO. Length is the mean over answers with thinking, by the model's own choice."
    return Picture("what-changed", f"From before to after GRPO: {changes}.", caption, draw)


def _by_family(evaluation: Evaluation) -> dict[str, Row]:
    return {row.family: row for row in evaluation.rows("family")}


def _draw_dumbbells(
    axis: Axes, theme: Theme, places: np.ndarray, before: Sequence[float], after: Sequence[float]
) -> None:
    axis.hlines(places, before, after, color=theme.faint, linewidth=1.4, alpha=0.6, zorder=1)
    shared: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 6}
    axis.plot(before, places, color=theme.before, markerfacecolor=theme.ground, label="before GRPO", **shared)
    axis.plot(after, places, color=theme.after, label="after GRPO", **shared)
    axis.grid(axis="y", visible=False)


def thinking_over_training(findings: Findings) -> Picture:
    """Plot the lengths of thinking and reply, and the share of rollouts that think, over GRPO steps."""

    def draw(theme: Theme) -> Figure:
        figure, (left, right) = panels(2, 2, 3.7, 2.5)
        lengths = [
            (("think_length",), theme.on, "thinking, of answers that think"),
            (("reply_length",), theme.after, "reply, of all answers"),
        ]
        draw_series(left, theme, findings.grpo, lengths)
        left.set_title("Length")
        left.set_ylabel("tokens")
        left.set_ylim(bottom=0)
        wanted = [
            (("think_share",), theme.after, "share that thinks"),
            (("right_when_thinking",), theme.on, "right when thinking"),
        ]
        draw_series(right, theme, findings.grpo, wanted)
        right.set_title("Share that thinks, and its accuracy")
        right.set_ylim(0, 1.03)
        right.yaxis.set_major_formatter(PercentFormatter(1.0))
        return figure

    alt = (
        f"Over GRPO: length of thinking in tokens, {ends(findings.grpo, 'think_length')}; length of replies, "
        f"{ends(findings.grpo, 'reply_length')}; share of rollouts that think, {ends(findings.grpo, 'think_share')}; "
        f"accuracy of these, {ends(findings.grpo, 'right_when_thinking')}."
    )
    return Picture(
        "thinking",
        alt,
        "GRPO rollouts on training problems, step by step. Lengths are means, in tokens.",
        draw,
    )


def experts(findings: Findings) -> Picture:
    """Plot one heat map per MoE layer: how each family's tokens are distributed over the experts."""
    use = findings.experts
    share = np.asarray(use.share)  # [layers, families, experts]

    def draw(theme: Theme) -> Figure:
        columns = min(2, len(use.layers))
        figure, axes = panels(len(use.layers), columns, 7.4 / columns, 0.75 + 0.24 * len(use.families), sharey=True)
        image = None
        for axis, layer, values in zip(axes, use.layers, share, strict=True):
            image = axis.imshow(
                values, cmap=theme.heat, vmin=0, vmax=share.max(), aspect="auto", interpolation="nearest"
            )
            axis.set_title(f"Layer {layer}")
            axis.grid(visible=False)
            axis.set_yticks(range(len(use.families)), use.families, color=theme.ink)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
            axis.spines[:].set_visible(False)
        figure.supxlabel("routed expert", fontsize=8.5, color=theme.faint)
        if image is not None:
            bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.01, format=PercentFormatter(1.0, decimals=0))
            bar.outline.set_visible(False)  # type: ignore[operator]
        return figure

    tops = [int(layer.mean(axis=0).argmax()) for layer in share]
    alt = (
        f"Heat maps, one for each of {len(use.layers)} mixture-of-experts layers. Rows are families, columns are experts, "
        f"shade is the share of the family's tokens. Most loaded expert by layer: {', '.join(map(str, tops))}."
    )
    caption = (
        "Share of each family's routed tokens that each expert serves. The router chooses for each token and layer: "
        "no expert belongs to one family."
    )
    return Picture("experts", alt, caption, draw)


def load(findings: Findings) -> Picture:
    """Plot the load of each expert relative to the mean of its layer."""
    use = findings.experts
    relative = [np.asarray(row) / max(float(np.mean(row)), 1e-12) for row in use.load]  # [layers][experts]

    def draw(theme: Theme) -> Figure:
        columns = min(4, len(relative))
        figure, axes = panels(len(relative), columns, 7.4 / columns, 1.7, sharey=True)
        for axis, layer, row in zip(axes, use.layers, relative, strict=True):
            axis.bar(range(len(row)), row, color=theme.after, width=0.8)
            axis.axhline(1.0, color=theme.ink, linestyle=":", linewidth=1.2)
            axis.set_title(f"Layer {layer}")
            axis.grid(axis="x", visible=False)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes[0].set_ylabel("load / mean")
        figure.supxlabel("routed expert", fontsize=8.5, color=theme.faint)
        return figure

    worst = max(float(row.max()) for row in relative)
    alt = f"Bars, one panel per layer: load of each expert over the mean of its layer. The largest is {worst:.2f}."
    return Picture(
        "load", alt, "Tokens served by each expert, over the mean of its layer. Dotted line: equal load.", draw
    )
