"""The result of checking a file of examples, as text, as JSON and as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from rorqual.report.chart import Chart, Series, draw
from rorqual.report.page import render_page
from rorqual.report.table import Table
from rorqual.teach.check import WARNINGS, FileCheck
from rorqual.teach.examples import FEWEST_EXAMPLES, truncate

FIRST = 5
"""Number of lines that the text table shows for each kind of fault."""
SHOWN = 200
"""Number of faults of each kind that the HTML page shows."""
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


def check_text(check: FileCheck, unit: str, *, splits: bool = True) -> str:
    """Return the result of a check as text. `unit` is the unit of the examples' lengths, such as "bytes". With `splits`, the
    text has the sizes of the splits."""
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
        lines.append(f"  line {one.line}: {truncate(one.prompt, 160)!r} -> {truncate(one.answer, 160)!r}")
    if check.faults:
        rows = [
            (name, f"{count:,}", _fault_lines(check, name), WHAT.get(name, "the row cannot be read"))
            for name, count in check.fault_counts().items()
        ]
        lines.append(Table(title="faults", heads=("", "rows", "lines", ""), rows=rows, text_columns=4).text())
    else:
        lines.append("  no faults")
    if check.labels:
        lines.append(Table(title="labels", heads=("", "examples"), rows=_label_count_rows(check.labels)).text())
    if check.lengths:
        lines += [
            "",
            f"length in {unit}: {_length_quantiles_text(check.lengths)}; the longest is line {check.longest_example_line}",
        ]
        if splits:
            sizes = ", ".join(f"{count:,} {split}" for split, count in check.splits.items())
            lines += ["", f"splits, with near-duplicates together: {sizes}"]
            if len(check.examples) < FEWEST_EXAMPLES:
                lines.append(f"`rorqual teach` needs at least {FEWEST_EXAMPLES} different examples")
    return "\n".join(line for line in lines if line is not None)


def _fault_lines(check: FileCheck, kind: str) -> str:
    lines = [str(fault.line) for fault in check.faults if fault.kind == kind]
    return ", ".join(lines[:FIRST]) + (f", and {len(lines) - FIRST:,} more" if len(lines) > FIRST else "")


def _label_count_rows(labels: Mapping[str, int]) -> list[tuple[str, str]]:
    items = list(labels.items())
    shown = items if len(items) <= 12 else [*items[:6], ("...", ""), *items[-5:]]
    return [(truncate(name, 60), f"{count:,}" if count else "") for name, count in shown]


def _length_quantiles_text(lengths: Sequence[int]) -> str:
    low, middle, high, top = np.quantile(lengths, [0, 0.5, 0.95, 1]).astype(int).tolist()
    return f"{low:,} to {top:,}, half at most {middle:,}, 95 % at most {high:,}"


def to_json(check: FileCheck) -> dict[str, Any]:
    """Return the result of a check as JSON values, without the texts of the examples."""
    return {
        "file": str(check.path),
        "columns": asdict(check.columns),
        "rows": check.rows,
        "examples": len(check.examples),
        "kind": check.kind,
        "faults": [asdict(fault) for fault in check.faults],
        "labels": dict(check.labels),
        "longest": check.longest_example_line,
        "splits": dict(check.splits),
    }


def check_page(check: FileCheck, unit: str, advice: Sequence[Table] = ()) -> str:
    """Return the HTML page of a check, with the tables of the advice on labels."""
    counts = check.fault_counts()
    facts = [("rows", f"{check.rows:,}", ""), ("usable", f"{len(check.examples):,}", ""), ("answers", check.kind, "")]
    facts += [(kind, f"{count:,}", "warning" if kind in WARNINGS else "fault") for kind, count in counts.items()]
    tables = [*advice, *(_fault_table(check, kind) for kind in sorted(counts, key=lambda kind: kind in WARNINGS))]
    if check.labels:
        labels = [(name, f"{count:,}") for name, count in check.labels.items()]
        tables.append(Table(title="Labels", heads=("label", "examples"), rows=labels))
    picture = draw(lengths_chart(check.lengths, unit)) if check.lengths else None
    return render_page("check", check=check, facts=facts, picture=picture, tables=tables)


def _fault_table(check: FileCheck, kind: str) -> Table:
    prompts = {one.line: one.prompt for one in check.examples}
    own = [fault for fault in check.faults if fault.kind == kind]
    return Table(
        title=f"{kind[:1].upper()}{kind[1:]}: {len(own):,}",
        heads=("line", "fault", "prompt"),
        rows=[(str(one.line), one.text, truncate(prompts.get(one.line, ""), 160)) for one in own[:SHOWN]],
        note=f"{len(own) - SHOWN:,} more rows are in the JSON file (out=)." if len(own) > SHOWN else "",
        text_columns=3,
    )


def lengths_chart(lengths: Sequence[int], unit: str) -> Chart:
    """Return a histogram of the lengths of examples."""
    counts, edges = np.histogram(lengths, bins=min(40, max(lengths) - min(lengths) + 1))
    high = float(np.quantile(lengths, 0.95))
    bars = Series(label="", style="bars", points=list(zip((edges[:-1] + edges[1:]) / 2, counts, strict=True)))
    most = Series(label="", style="dashed", colour="ink", points=[(high, 0), (high, max(counts))])
    return Chart(
        name="lengths",
        width=4.6,
        alt=f"Histogram of lengths in {unit}: {_length_quantiles_text(lengths)}.",
        caption=f"Length of prompt, reasoning and answer together, in {unit}. Dashed: 95 % of the examples are at most so long.",
        x=unit,
        y="examples",
        series=(bars, most),
    )
