"""The tables of the report's section on the students. The students are distilled, trained with GRPO, or trained on answers
alone."""

from __future__ import annotations

from typing import Any

from rorqual.evals.evaluation import ALL
from rorqual.evals.table import best_baseline_text, percent, percent_interval
from rorqual.recipes.quickstart.charts import branch_rows
from rorqual.recipes.quickstart.comparisons import OF_STUDENTS, sign_of
from rorqual.recipes.quickstart.findings import Findings
from rorqual.report.table import Table


def student_contents(findings: Findings) -> dict[str, Any]:
    """Return the values that the report's template needs for the section on the students."""
    prompts = {sample.family: sample.prompt for sample in findings.students["distilled", "auto"].samples}
    return {
        "pooled": {name: one.rows(findings.students, "all")[0] for name, one in OF_STUDENTS.items()},
        "sign_of": sign_of,
        "percent_interval": percent_interval,
        "costs": {branch.name: findings.summary.cost_of(branch).core_seconds for branch in findings.summary.branches},
        "examples": "; ".join(prompts[family] for family in sorted(prompts)),
        "branches": branches_table(findings),
        "families": families_table(findings),
        "comparisons": [one.table(findings.students) for one in OF_STUDENTS.values()],
    }


def branches_table(findings: Findings) -> Table:
    """Return a table with each model's accuracy over all families and its cost."""
    heads = (
        "model",
        "right",
        "95 % interval",
        "made to think",
        "thinks",
        "thinking",
        "core-seconds",
        "US cents",
    )
    rows = []
    for branch in findings.summary.branches:
        row = branch_rows(findings, branch)[ALL]
        cost, made = findings.summary.cost_of(branch), findings.branch_accuracy(branch.name, "on")
        rows.append((
            branch.title,
            percent(row.accuracy),
            percent_interval(row.interval),
            "-" if made is None else percent(made),
            percent(row.thought),
            f"{row.thinking_length:.1f}",
            f"{cost.core_seconds:,.1f}",
            f"{100 * cost.cost_usd(findings.summary.core_hour):.3f}",
        ))  # fmt: skip
    return Table(title="every model", heads=heads, rows=rows)


def families_table(findings: Findings) -> Table:
    """Return a table with the accuracy of each model on each family."""
    tables = [(branch.title, branch_rows(findings, branch)) for branch in findings.summary.branches]
    rows: list[tuple[str, ...]] = []
    for family in tables[0][1]:
        rows.append(("all families" if family == ALL else family,))
        rows += [
            (
                title,
                str(of_family[family].problems),
                percent(of_family[family].accuracy),
                percent_interval(of_family[family].interval),
                best_baseline_text(of_family[family]),
                percent(of_family[family].thought),
            )
            for title, of_family in tables
        ]
    heads = ("model", "problems", "right", "95 % interval", "best baseline", "thinks")
    return Table(title="every model by family", heads=heads, rows=rows)
