"""The tables of the report's section on the student: distilled, trained with GRPO, or trained on answers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rorqual.evals.evaluation import ALL
from rorqual.evals.table import baseline, percent, percent_interval
from rorqual.recipes.quickstart.claims import SupportedClaim, claims_table, overview_table, points, points_interval
from rorqual.recipes.quickstart.findings import Findings
from rorqual.recipes.quickstart.student_charts import branch_rows
from rorqual.report.table import Table

WIDE = 0.99


def student_contents(findings: Findings, supported: Sequence[SupportedClaim]) -> dict[str, Any]:
    """Return what the report's template says of the student."""
    prompts = {sample.family: sample.prompt for sample in findings.students["distilled", "auto"].samples}
    return {
        "pooled": {item.topic.name: item for item in supported if item.family == "all families"},
        "points": points,
        "points_interval": points_interval,
        "costs": {branch.name: findings.summary.cost_of(branch).core_seconds for branch in findings.summary.branches},
        "examples": "; ".join(prompts[family] for family in sorted(prompts)),
        "branches": branches_table(findings),
        "families": families_table(findings),
        "claims": (overview_table(supported), claims_table(supported)),
        "count": len(supported),
    }


def branches_table(findings: Findings) -> Table:
    """Return the accuracy of each model over all families, and its cost."""
    heads = (
        "model",
        "right",
        "95 % interval",
        "99 % interval",
        "made to think",
        "thinks",
        "thinking",
        "core-seconds",
        "US cents",
    )
    rows = []
    for branch in findings.summary.branches:
        row, wide = branch_rows(findings, branch)[ALL], branch_rows(findings, branch, WIDE)[ALL]
        cost, made = findings.summary.cost_of(branch), findings.share(branch.name, "on")
        rows.append((
            branch.title,
            percent(row.accuracy),
            percent_interval(row.interval),
            percent_interval(wide.interval),
            "-" if made is None else percent(made),
            percent(row.thought),
            f"{row.thinking_length:.1f}",
            f"{cost.core_seconds:,.1f}",
            f"{100 * cost.money(findings.summary.core_hour):.3f}",
        ))  # fmt: skip
    return Table(title="every model", heads=heads, rows=rows)


def families_table(findings: Findings) -> Table:
    """Return the accuracy of each model, by family."""
    branches = findings.summary.branches
    tables = [(branch.title, branch_rows(findings, branch), branch_rows(findings, branch, WIDE)) for branch in branches]
    rows: list[tuple[str, ...]] = []
    for family in tables[0][1]:
        rows.append(("all families" if family == ALL else family,))
        rows += [
            (
                title,
                str(narrow[family].problems),
                percent(narrow[family].accuracy),
                percent_interval(narrow[family].interval),
                percent_interval(wide[family].interval),
                baseline(narrow[family]),
                percent(narrow[family].thought),
            )
            for title, narrow, wide in tables
        ]
    heads = ("model", "problems", "right", "95 % interval", "99 % interval", "best baseline", "thinks")
    return Table(title="every model by family", heads=heads, rows=rows)
