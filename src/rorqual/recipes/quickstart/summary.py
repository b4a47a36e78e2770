"""The report's data about models and costs: sizes from the runs, and the cost of each stage from the ledger."""

from __future__ import annotations

from typing import Any

from rorqual.core.ledger import AMOUNTS, CORE_HOUR, LedgerEntry, read_ledger
from rorqual.core.records import METRICS_FILE, RunDir
from rorqual.data.distilled import read_distilled
from rorqual.model.account import account
from rorqual.model.load.run_directory import read_model_config
from rorqual.recipes.quickstart.paths import BRANCHES, QuickstartPaths
from rorqual.recipes.quickstart.report import REPORT_FILE

REPORT_STAGE = "report"
"""Name in the ledger of the stage that writes the report. The report cannot contain the cost of this stage."""
TITLES = {
    "teacher": "teacher",
    "student-base": "base student",
    "distilled": "distilled",
    "reinforced": "reinforced",
    "answers-only": "answers alone",
}
PAID_FOR = {
    "teacher": ("train the teacher", "reinforce the teacher"),
    "student-base": ("train the base student",),
    "distilled": ("sample the teacher", "distil the student"),
    "reinforced": ("reinforce the rival",),
    "answers-only": ("sample the teacher", "train on answers alone"),
}
"""For each branch: the stages whose costs count for the branch. All student branches share the base student, but the base
student's cost counts only for the branch `student-base`."""


def build_summary(place: QuickstartPaths, seed: int, size: str) -> dict[str, Any]:
    """Return the data that the report shows about models and costs."""
    facts = {name: model_facts(place.run(name)) for name in ("teacher", "student-base")}
    command = f"rorqual quickstart --seed {seed}" + ("" if size == "full" else f" --size {size}")
    branches = [
        {"name": name, "title": TITLES[name], "modes": list(modes), "stages": list(PAID_FOR[name])}
        for name, modes in BRANCHES.items()
    ]
    return {
        "model": facts["teacher"],
        "student": facts["student-base"],
        "stages": [stage_json(entry) for entry in read_ledger(place.ledger) if entry.stage != REPORT_STAGE],
        "branches": branches,
        "samples": sample_counts(place),
        "core_hour": CORE_HOUR,
        "seed": seed,
        "command": command,
    }


def stage_json(entry: LedgerEntry) -> dict[str, Any]:
    """Return the name and the cost of a stage."""
    return {"name": entry.stage} | {name: getattr(entry, name) for name in AMOUNTS}


def model_facts(run: RunDir) -> dict[str, int]:
    """Return a model's parameters, cache size and FLOPs, with the keys that the report uses."""
    model = read_model_config(run)
    a = account(model, context=model.max_position_embeddings, cache_value_bytes=4)
    facts = {"total": a.total, "active": a.active, "cache_bytes_per_token": a.cache_bytes, "flops_per_token": a.flops}
    return facts | ({"mtp": a.mtp} if a.mtp else {})


def sample_counts(place: QuickstartPaths) -> dict[str, int]:
    """Return three counts of the teacher's samples: all samples, correct samples, and samples that the filters kept."""
    rows = read_distilled(place.samples_file).rows
    counts = {"sampled": len(rows), "right": sum(row.verdict == "right" for row in rows)}
    return counts | {"kept": sum(not row.dropped for row in rows)}


def forward_flops(run: RunDir) -> int:
    """Return the FLOPs per token of a run's model at its full context."""
    model = read_model_config(run)
    return account(model, context=model.max_position_embeddings).flops


def is_report_current(place: QuickstartPaths) -> bool:
    """Return whether the report and its summary exist, and none of the report's inputs is newer."""
    report = place.out / REPORT_FILE
    if not report.is_file() or not place.summary.is_file():
        return False
    inputs = [*place.out.glob(f"*/{METRICS_FILE}"), *place.evals.glob("*.json")]
    return all(path.stat().st_mtime_ns <= report.stat().st_mtime_ns for path in inputs)
