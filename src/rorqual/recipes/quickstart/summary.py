"""The report's data about models and costs: tokens and FLOPs from the stages' files, time from the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rorqual.core.ledger import CORE_HOUR, LedgerEntry, read_ledger
from rorqual.core.records import RunDir
from rorqual.data.distilled import read_distilled
from rorqual.evals.evaluation import Evaluation
from rorqual.model.account import account
from rorqual.model.load.run_directory import read_model_config
from rorqual.recipes.quickstart.paths import BRANCHES, MODES, WHEN, QuickstartPaths
from rorqual.recipes.quickstart.report import REPORT_FILE
from rorqual.tasks.task import Verdict

TRAININGS = {
    "base": "train the teacher",
    "teacher": "reinforce the teacher",
    "student-able": "train the base student",
    "student-base": "train the base student",
    "distilled": "distil the student",
    "answers-only": "train on answers alone",
    "reinforced": "reinforce the rival",
}
"""The stage that trains each run, by the run's folder."""
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
"""For each branch: the stages whose costs count for the branch. All student branches share the base student, but its
cost counts only for the branch `student-base`."""


def summary(place: QuickstartPaths, seed: int, size: str) -> dict[str, Any]:
    """Return the report's data about models and costs."""
    facts = {name: model_facts(place.run(name)) for name in ("teacher", "student-base")}
    command = f"rorqual quickstart --seed {seed}" + ("" if size == "full" else f" --size {size}")
    branches = [
        {"name": name, "title": TITLES[name], "modes": list(modes), "stages": list(PAID_FOR[name])}
        for name, modes in BRANCHES.items()
    ]
    return {
        "model": facts["teacher"],
        "student": facts["student-base"],
        "stages": stages(place),
        "branches": branches,
        "samples": sample_counts(place),
        "core_hour": CORE_HOUR,
        "seed": seed,
        "command": command,
    }


def model_facts(run: RunDir) -> dict[str, int]:
    """Return a model's parameters, cache size and FLOPs, with the keys that the report uses."""
    model = read_model_config(run)
    a = account(model, context=model.max_position_embeddings, cache_value_bytes=4)
    facts = {"total": a.total, "active": a.active, "cache_bytes_per_token": a.cache_bytes, "flops_per_token": a.flops}
    return facts | ({"mtp": a.mtp} if a.mtp else {})


def stages(place: QuickstartPaths) -> list[dict[str, Any]]:
    """Return the tokens, FLOPs, correct answers and time of each stage. The last entry is the time that belongs to no
    stage. The report's own cost is not included."""
    amounts: dict[str, dict[str, int]] = {}
    for name, stage in TRAININGS.items():
        totals, added = amounts.get(stage, {}), trained_cost(place.run(name))
        amounts[stage] = {key: totals.get(key, 0) + amount for key, amount in added.items()}
        if name == "teacher":
            paths = [(place.evaluation(f"{when}-{mode}"), place.teacher) for when in WHEN for mode in MODES]
            amounts["measure the teacher"] = measured_cost(paths)
        elif name == "student-base":
            amounts["sample the teacher"] = sampled_cost(place)
    amounts["measure the students"] = measured_cost(
        [(place.measured(name, mode), place.run(name)) for name, modes in BRANCHES.items() for mode in modes]
    )
    spent = {entry.stage: entry for entry in read_ledger(place.ledger)}
    amounts["unaccounted"] = {"tokens": 0, "flops": 0, "solved": 0}
    stage_list = []
    for stage, amount in amounts.items():
        entry = spent.get(stage, LedgerEntry(stage))
        clock = {"seconds": entry.seconds, "core_seconds": entry.core_seconds, "spent_tokens": entry.tokens}
        stage_list.append({"name": stage} | amount | clock)
    return stage_list


def trained_cost(run: RunDir) -> dict[str, int]:
    """Return the total tokens and FLOPs of a run's metrics. `solved` counts correct answers during training, for runs
    that sample."""
    records = list(run.metrics())
    return {
        "tokens": sum(int(r["tokens"]) + int(r.get("sampled_tokens", 0)) for r in records),
        "flops": sum(int(r["flops"]) for r in records),
        "solved": sum(int(r.get("right", 0)) for r in records),
    }


def sampled_cost(place: QuickstartPaths) -> dict[str, int]:
    """Return the cost of sampling the teacher. `solved` counts the correct samples."""
    rows = read_distilled(place.samples_file).rows
    tokens = sum(row.prompt_tokens + row.completion_tokens for row in rows)
    solved = sum(row.verdict == "right" for row in rows)
    return {"tokens": tokens, "flops": tokens * forward_flops(place.teacher), "solved": solved}


def sample_counts(place: QuickstartPaths) -> dict[str, int]:
    """Return three counts of the teacher's samples: all samples, correct samples, and samples that the filters kept."""
    rows = read_distilled(place.samples_file).rows
    counts = {"sampled": len(rows), "right": sum(row.verdict == "right" for row in rows)}
    return counts | {"kept": sum(not row.dropped for row in rows)}


def measured_cost(paths: list[tuple[Path, RunDir]]) -> dict[str, int]:
    """Return the cost of evaluations. `paths` lists (evaluation file, run of the evaluated model)."""
    cost = {"tokens": 0, "flops": 0, "solved": 0}
    for path, run in paths:
        evaluation = Evaluation.load(path)
        tokens = sum(evaluation.usage.values())
        cost["tokens"] += tokens
        cost["flops"] += tokens * forward_flops(run)
        cost["solved"] += sum(sample.verdict is Verdict.RIGHT for sample in evaluation.samples)
    return cost


def forward_flops(run: RunDir) -> int:
    """Return the FLOPs per token of a run's model at its full context."""
    model = read_model_config(run)
    return account(model, context=model.max_position_embeddings).flops


def is_current(place: QuickstartPaths) -> bool:
    """Return whether the report and its summary exist, and none of the report's inputs is newer."""
    report = place.out / REPORT_FILE
    if not report.is_file() or not place.summary.is_file():
        return False
    inputs = [*(place.run(name).metrics_file for name in TRAININGS), *place.evals.glob("*.json")]
    return all(path.stat().st_mtime_ns <= report.stat().st_mtime_ns for path in inputs)
