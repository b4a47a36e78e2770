"""The result of a check as text, as JSON and as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rorqual.evals import page as html
from rorqual.evals.pictures import DARK, LIGHT, Picture, Theme, panels, png
from rorqual.evals.table import render
from rorqual.tasks.rows import normal
from rorqual.teach.check import WARNINGS, Check
from rorqual.teach.dataset import FEWEST

FEW = 3
"""Labels with fewer examples are listed."""
FIRST = 5
"""Number of lines that the text table shows for each kind of fault."""
SHOWN = 200
"""Number of faults that the page shows for each kind."""
BARS, WIDE = 8, 40
"""Number of bars of the text histogram, and the length of the longest."""
WHAT: Mapping[str, str] = {
    "duplicate": "the same prompt and answer as an earlier row",
    "near-duplicate": "nearly the same prompt as an earlier row; kept in the same split",
    "near-contradiction": "nearly the same prompt as an earlier row, with another answer",
    "contradiction": "the same prompt as an earlier row, with another answer",
    "answer in prompt": "the prompt states the answer",
    "test row": "a prompt of the test file",
    "empty": "an empty prompt or answer",
    "no number": "the other answers are numbers, and this one is none",
    "no JSON": "the other answers are JSON, and this one is not",
    "missing or not text": "a column is missing, or has no text",
}


def check_text(check: Check, unit: str, *, splits: bool = True) -> str:
    """Return the result as text. `unit` names what lengths count, such as "bytes". `splits` adds the sizes of the splits."""
    kind = (
        f"{len(check.labels)} labels"
        if check.kind == "label"
        else {"number": "numbers", "JSON": "JSON"}.get(check.kind, "free text")
    )
    lines = [
        f"{check.path}: {check.rows:,} rows, {len(check.examples):,} usable",
        f"  {check.columns.describe()} ({kind})" if check.examples else "",
    ]
    for one in check.examples[:1]:
        lines.append(f"  line {one.line}: {_excerpt(one.prompt)!r} -> {_excerpt(one.answer)!r}")
    if check.faults:
        rows = [
            (name, f"{count:,}", _lines(check, name), WHAT.get(name, "the row cannot be read"))
            for name, count in check.counts().items()
        ]
        lines.append(render("faults", ("", "rows", "lines", ""), rows, text_columns=4))
    else:
        lines.append("  no faults")
    if check.labels:
        lines.append(render("labels", ("", "examples"), _labels(check.labels), text_columns=1))
        lines += _doubtful_labels(check.labels)
    if check.lengths:
        lines += [
            "",
            f"length in {unit}: {_quantiles(check.lengths)}; the longest is line {check.longest}",
            *_histogram(check.lengths),
        ]
        if splits:
            sizes = ", ".join(f"{count:,} {split}" for split, count in check.splits.items())
            lines += ["", f"split by a hash of the prompt, near-duplicates together: {sizes}"]
            if len(check.examples) < FEWEST:
                lines.append(f"`rorqual teach` needs at least {FEWEST} different examples")
    return "\n".join(line for line in lines if line is not None)


def _lines(check: Check, kind: str) -> str:
    lines = [str(fault.line) for fault in check.faults if fault.kind == kind]
    return ", ".join(lines[:FIRST]) + (f", and {len(lines) - FIRST:,} more" if len(lines) > FIRST else "")


def _labels(labels: Mapping[str, int]) -> list[tuple[str, str]]:
    items = list(labels.items())
    shown = items if len(items) <= 12 else [*items[:6], ("...", ""), *items[-5:]]
    return [(name if len(name) <= 60 else name[:57] + "...", f"{count:,}" if count else "") for name, count in shown]


def _doubtful_labels(labels: Mapping[str, int]) -> list[str]:
    """Return a line on labels that have few examples, and one on labels that differ only in case or white space."""
    forms: dict[str, list[str]] = {}
    for name in labels:
        forms.setdefault(normal(name), []).append(name)
    counts = {names[0]: sum(labels[name] for name in names) for names in forms.values()}
    few = [name for name, count in counts.items() if count < FEW]
    alike = [f"{' and '.join(map(repr, names[1:]))} as {names[0]!r}" for names in forms.values() if len(names) > 1]
    return [
        *(
            [f"  labels with fewer than {FEW} examples (typing errors?): {', '.join(map(repr, few[:10]))}"]
            if few
            else []
        ),
        *([f"  counted as one label: {'; '.join(alike[:10])}"] if alike else []),
    ]


def _excerpt(text: str) -> str:
    return text if len(text) <= 160 else text[:157] + "..."


def _quantiles(lengths: Sequence[int]) -> str:
    low, middle, high, top = np.quantile(lengths, [0, 0.5, 0.95, 1]).astype(int).tolist()
    return f"{low:,} to {top:,}, half at most {middle:,}, 95 % at most {high:,}"


def _histogram(lengths: Sequence[int]) -> list[str]:
    least, most = min(lengths), max(lengths)
    width = -(-(most - least + 1) // BARS)
    counts = np.bincount((np.asarray(lengths) - least) // width)
    return [
        f"  {least + width * place:>7,} to {least + width * (place + 1) - 1:>7,}  {'█' * round(WIDE * count / counts.max()):<{WIDE}}  {count:,}"
        for place, count in enumerate(counts.tolist())
    ]


def to_json(check: Check) -> dict[str, Any]:
    """Return all values as JSON, without the examples' texts."""
    return {
        "file": str(check.path),
        "columns": asdict(check.columns),
        "rows": check.rows,
        "examples": len(check.examples),
        "kind": check.kind,
        "faults": [asdict(fault) for fault in check.faults],
        "labels": dict(check.labels),
        "longest": check.longest,
        "splits": dict(check.splits),
    }


def check_page(check: Check, unit: str) -> str:
    """Return the HTML page."""
    facts = [("rows", f"{check.rows:,}", ""), ("usable", f"{len(check.examples):,}", ""), ("answers", check.kind, "")]
    facts += [
        (kind, f"{count:,}", "warning" if kind in WARNINGS else "fault") for kind, count in check.counts().items()
    ]
    body = [
        f"<header><h1>Check of {escape(check.path.name)}</h1>",
        html.para(check.columns.describe(), "lede") if check.examples else "",
        html.facts(facts),
        "</header>",
    ]
    if check.lengths:
        picture = lengths_picture(check.lengths, unit)
        body.append(html.figure(picture, png(picture, LIGHT), png(picture, DARK)))
    prompts = {one.line: one.prompt for one in check.examples}
    for number, kind in enumerate(sorted(check.counts(), key=lambda kind: kind in WARNINGS)):
        own = [fault for fault in check.faults if fault.kind == kind]
        rows = [("", [(str(fault.line), fault.text, _excerpt(prompts.get(fault.line, ""))) for fault in own[:SHOWN]])]
        more = (
            [html.para(f"{len(own) - SHOWN:,} more rows are in the JSON file (out=).", "note")]
            if len(own) > SHOWN
            else []
        )
        body.append(
            html.section(
                f"fault-{number}",
                f"{kind.capitalize()}: {len(own):,}",
                html.table(kind, ("line", "fault", "prompt"), rows, text_columns=3),
                *more,
            )
        )
    if check.labels:
        labels = [("", [(name, f"{count:,}") for name, count in check.labels.items()])]
        body.append(html.section("labels", "Labels", html.table("labels", ("label", "examples"), labels)))
    return html.page(f"Rorqual: check of {check.path.name}", "\n".join(body))


def lengths_picture(lengths: Sequence[int], unit: str) -> Picture:
    """Plot the histogram of lengths."""
    alt = f"Histogram of lengths in {unit}: {_quantiles(lengths)}."
    caption = (
        f"Length of prompt, reasoning and answer together, in {unit}. Dashed: 95 % of the examples are at most so long."
    )
    return Picture("lengths", alt, caption, partial(_draw_lengths, list(lengths), unit))


def _draw_lengths(lengths: list[int], unit: str, theme: Theme) -> Figure:
    figure, (axis,) = panels(1, 1, 6.6, 2.6)
    axis.hist(lengths, bins=min(40, max(lengths) - min(lengths) + 1), color=theme.after)
    axis.axvline(float(np.quantile(lengths, 0.95)), color=theme.ink, linestyle="--", linewidth=1)
    axis.set_xlabel(unit)
    axis.set_ylabel("examples")
    return figure
