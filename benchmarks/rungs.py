"""Measure the rungs without a language model on the rows, splits and seeds of `benchmarks/teach.py`, beside its taught models.

    python benchmarks/rungs.py DATA BASE --keep FOLDER [--cases banking77,snips,svamp] [--seeds 1,2,3,4,5]

DATA and BASE are those of `benchmarks/teach.py`, whose result docs/results/teach.json has the taught models' replies to the same 200
test examples. The result is docs/results/rungs.json: for each case and rung the accuracy by seed, the difference from the taught model
with both 99 % intervals, and the seconds for fitting and for one answer. The command resumes: finished seeds are not repeated.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from record import made_by

from rorqual.core.ledger import Ledger
from rorqual.core.records import write_json
from rorqual.evals.stats import hierarchical_difference, t_interval
from rorqual.evals.verdict import CONFIDENCE, judge
from rorqual.tasks.examples import ExamplesTask
from rorqual.teach.config import TeachConfig
from rorqual.teach.measure import evaluate_guesses, test_problems
from rorqual.teach.paths import TeachPaths
from rorqual.teach.rungs.ladder import rungs_of
from rorqual.teach.rungs.rung import TrainingRows
from rorqual.teach.stages import TeachStages
from teach import AFTER, RESULT, TEST, bits, draw

TIMED = 40
"""Number of test prompts that are answered again to measure the time of an answer."""


def run(case: str, seed: int, data: Path, base: Path, folder: Path) -> dict[str, Any]:
    """Measure all rungs on one division, and return their results."""
    named = dict(key.split("=", 1) for key in draw(case, seed, data, folder))
    config = TeachConfig(
        file=str(folder / "train.jsonl"),
        test=str(folder / "test.jsonl"),
        base=str(base),
        seed=seed,
        quiet=True,
        **named,
    )
    paths = TeachPaths(folder / "run")
    with closing(Ledger(paths.ledger)) as ledger:
        stages = TeachStages(config, paths, 1, ledger, lambda *_: None, "")
        stages.check_settings()
        stages.prepare_data()
    task, rows = ExamplesTask(paths.data, grader=config.grader), TrainingRows(stages.dataset.pool, stages.dataset.kind)
    problems = test_problems(task)
    found: dict[str, Any] = {}
    for rung in rungs_of(rows.kind, rule=stages.rule, encoder=stages.encoder):
        began = time.process_time()
        rung.fit(rows)
        fitted = time.process_time()
        guesses = rung.predict([one.prompt for one in problems])
        began_timing = time.process_time()
        rung.predict([f"{one.prompt} " for one in problems[:TIMED]])  # the space: no embedding of the prompt is stored
        timed = time.process_time() - began_timing
        found[rung.name] = {
            "right": bits(evaluate_guesses(rung.name, task, problems, guesses)),
            "fit_core_seconds": round(fitted - began, 2),
            "answer_core_milliseconds": round(1000 * timed / TIMED, 2),
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"case": case, "seed": seed, "train": len(rows.examples), "rungs": found, "peak_bytes": peak}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return for each case and rung the accuracy, its costs, and the rung's difference from the taught model of ten minutes."""
    taught = {
        (one["case"], one["seed"]): one for one in json.loads(RESULT.read_bytes())["runs"] if one["minutes"] == 10
    }
    found: dict[str, Any] = {}
    for case in dict.fromkeys(one["case"] for one in runs):
        own = [one for one in runs if one["case"] == case]
        for name in own[0]["rungs"]:
            values = [np.array([int(bit) for bit in one["rungs"][name]["right"]]) for one in own]
            models = [np.array([int(bit) for bit in taught[case, one["seed"]]["right"][AFTER]]) for one in own]
            gains = [float(rung.mean() - model.mean()) for rung, model in zip(values, models, strict=True)]
            row: dict[str, Any] = {
                "right": float(np.mean([one.mean() for one in values])),
                "right_by_seed": [float(one.mean()) for one in values],
                "over_taught": float(np.mean(gains)),
            }
            for cost in ("fit_core_seconds", "answer_core_milliseconds"):
                row[cost] = float(np.median([one["rungs"][name][cost] for one in own]))
            if len(own) > 1:
                boot = hierarchical_difference(models, values, CONFIDENCE, shared=True).interval
                student = t_interval(gains, CONFIDENCE)
                row |= {"bootstrap": [boot.low, boot.high], "student_t": [student.low, student.high]}
                row["better_than_taught"] = judge(boot, gains)
            found.setdefault(case, {})[name] = row
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--cases", default="banking77,snips,svamp")
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--keep", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--result", type=Path, default=RESULT.with_name("rungs.json"))
    given = parser.parse_args()
    runs = json.loads(given.result.read_bytes())["runs"] if given.result.exists() else []
    made = made_by({given.data: "DATA", given.base: "BASE", given.keep: "FOLDER"})
    for case in given.cases.split(","):
        for seed in map(int, given.seeds.split(",")):
            if any((one["case"], one["seed"]) == (case, seed) for one in runs):
                continue
            runs.append(run(case, seed, given.data.absolute(), given.base.absolute(), given.keep / f"{case}-{seed}"))
            write_json(given.result, {"made by": made, "summary": summary(runs), "runs": runs})
            shown = {name: one["right"].count("1") / TEST for name, one in runs[-1]["rungs"].items()}
            print(case, seed, shown, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
