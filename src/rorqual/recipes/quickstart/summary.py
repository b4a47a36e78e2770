"""The report's facts about models and costs: amounts from the stages' files, time and money from the ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rorqual.core.ledger import CORE_HOUR, LedgerEntry, read_ledger
from rorqual.core.records import RunDir
from rorqual.data.distilled import read_distilled
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.report import REPORT_FILE
from rorqual.model.account import account
from rorqual.model.load.run import read_model_config
from rorqual.recipes.quickstart.place import BRANCHES, MODES, WHEN, Place
from rorqual.tasks.base import Verdict

TRAININGS = {
    "base": "train the teacher",
    "teacher": "reinforce the teacher",
    "student-able": "train the base student",
    "student-base": "train the base student",
    "distilled": "distil the student",
    "answers-only": "train on answers alone",
    "reinforced": "reinforce the rival",
}
"""The stage that trains each run folder."""
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
"""The stages whose cost belongs to each branch. A student's stages exclude the shared base."""
CLOCK_KEYS = ("seconds", "core_seconds", "spent_tokens")


def summary(place: Place, seed: int, size: str) -> dict[str, Any]:
    """Return the report's facts about models and costs."""
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
    """Return a model's account under the report's names."""
    model = read_model_config(run)
    a = account(model, context=model.max_position_embeddings, cache_value_bytes=4)
    facts = {"total": a.total, "active": a.active, "cache_bytes_per_token": a.cache_bytes, "flops_per_token": a.flops}
    return facts | ({"mtp": a.mtp} if a.mtp else {})


def stages(place: Place) -> list[dict[str, Any]]:
    """Return each stage's amounts and its time from the ledger, with unaccounted time last. The report's own cost is not included."""
    amounts: dict[str, dict[str, int]] = {}
    for name, stage in TRAININGS.items():
        had, more = amounts.get(stage, {}), trained_cost(place.run(name))
        amounts[stage] = {key: had.get(key, 0) + amount for key, amount in more.items()}
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
    found = []
    for stage, amount in amounts.items():
        entry = spent.get(stage, LedgerEntry(stage))
        clock = {"seconds": entry.seconds, "core_seconds": entry.core_seconds, "spent_tokens": entry.tokens}
        found.append({"name": stage} | amount | clock)
    return found


def trained_cost(run: RunDir) -> dict[str, int]:
    """Return the totals of a run's metrics. `solved` counts right answers during training, for runs that sample."""
    records = list(run.metrics())
    return {
        "tokens": sum(int(r["tokens"]) + int(r.get("sampled_tokens", 0)) for r in records),
        "flops": sum(int(r["flops"]) for r in records),
        "solved": sum(int(r.get("right", 0)) for r in records),
    }


def sampled_cost(place: Place) -> dict[str, int]:
    """Return the cost of sampling the teacher. `solved` counts the right samples."""
    rows = read_distilled(place.samples_file).rows
    tokens = sum(row.prompt_tokens + row.completion_tokens for row in rows)
    solved = sum(row.verdict == "right" for row in rows)
    return {"tokens": tokens, "flops": tokens * forward_flops(place.teacher), "solved": solved}


def sample_counts(place: Place) -> dict[str, int]:
    """Return how many of the teacher's samples were drawn, right and kept."""
    rows = read_distilled(place.samples_file).rows
    counts = {"sampled": len(rows), "right": sum(row.verdict == "right" for row in rows)}
    return counts | {"kept": sum(not row.dropped for row in rows)}


def measured_cost(paths: list[tuple[Path, RunDir]]) -> dict[str, int]:
    """Return the cost of these evaluations, each given with its model's run."""
    cost = {"tokens": 0, "flops": 0, "solved": 0}
    for path, run in paths:
        found = Evaluation.load(path)
        tokens = sum(found.usage.values())
        cost["tokens"] += tokens
        cost["flops"] += tokens * forward_flops(run)
        cost["solved"] += sum(sample.verdict is Verdict.RIGHT for sample in found.samples)
    return cost


def forward_flops(run: RunDir) -> int:
    """Return the FLOPs per token of a run's model at its full context."""
    model = read_model_config(run)
    return account(model, context=model.max_position_embeddings).flops


def without_clock(told: dict[str, Any]) -> dict[str, Any]:
    """Return a summary without the values that depend on time or on interruptions."""
    steady = [{k: v for k, v in stage.items() if k not in CLOCK_KEYS} for stage in told.get("stages", ())]
    return told | {"stages": steady}


def tells(place: Place, told: dict[str, Any]) -> bool:
    """Return True if the report exists and is up to date: the same summary, and none of its inputs is newer."""
    report = place.out / REPORT_FILE
    if not report.is_file() or not place.summary.is_file():
        return False
    if without_clock(json.loads(place.summary.read_bytes())) != without_clock(json.loads(json.dumps(told))):
        return False
    read = [*(place.run(name).metrics_file for name in TRAININGS), *place.evals.glob("*.json")]
    return all(path.stat().st_mtime_ns <= report.stat().st_mtime_ns for path in read)
