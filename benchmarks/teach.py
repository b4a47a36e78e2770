"""Teach SmolLM2-135M three tasks of real data, with five seeds each, and compare with every baseline.

    python benchmarks/teach.py DATA BASE --keep FOLDER [--minutes 10] [--cases banking77,banking10,snips,svamp,gsm8k] [--seeds 1,2,3,4,5]

DATA is a folder with banking77, snips, svamp and gsm8k. BASE is the run of SmolLM2-135M-Instruct, or a GGUF file. Each run draws 500
rows with its seed, trains on one core for MINUTES, and measures 200 test examples, which are the same for all seeds. SVAMP has 500 rows
beside its test examples, so there a seed changes their order alone. The result is docs/results/teach.json. The command resumes: finished
runs are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import rorqual
from rorqual.core.ledger import read_ledger
from rorqual.core.records import write_json
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.stats import hierarchical_difference, mcnemar, t_interval
from rorqual.evals.verdict import judge
from rorqual.tasks.task import Verdict
from rorqual.teach.model_stages import UNCOUNTED
from rorqual.teach.paths import TeachPaths
from rorqual.teach.rungs.language_model import TAUGHT

BEFORE, AFTER, ALONE = "base, no examples", "taught model", "taught model without calculator"
BASELINES = "measure the baselines"
"""Names in the results of versions that measured all baselines on the test split."""
RESULT = Path(__file__).parent.parent / "docs" / "results" / "teach.json"
TRAIN, TEST = 500, 200
TEN = ("card_arrival", "lost_or_stolen_card", "change_pin", "exchange_rate", "top_up_failed", "request_refund",
       "cash_withdrawal_charge", "terminate_account", "age_limit", "verify_my_identity")  # fmt: skip
"""The ten labels of the case `banking10`, chosen by name before anything was measured."""
CONFIDENCE = 0.99
Rows = list[dict[str, Any]]


def banking(data: Path, labels: Sequence[str] = ()) -> tuple[Rows, Rows]:
    """Return the training and test rows of BANKING77, of all labels or of some."""
    both = []
    for name in ("train", "test"):
        with open(data / "banking77" / f"{name}.csv", encoding="utf-8", newline="") as file:
            both.append([row for row in csv.DictReader(file) if not labels or row["category"] in labels])
    return both[0], both[1]


def lines(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]


def snips(data: Path) -> tuple[Rows, Rows]:
    train, test = (lines(data / "snips" / f"{name}.jsonl") for name in ("train", "test"))
    return train, test


def svamp(data: Path) -> tuple[Rows, Rows]:
    """Return SVAMP's rows; it has no test file here, so 200 rows are held out by a fixed draw."""
    rows = lines(data / "svamp" / "examples.jsonl")
    random.Random(0).shuffle(rows)
    return rows[TEST:], rows[:TEST]


def gsm8k(data: Path) -> tuple[Rows, Rows]:
    train, test = (lines(data / "gsm8k" / f"{name}.jsonl") for name in ("train", "test"))
    return [split_solution(row) for row in train], [split_solution(row) for row in test]


def split_solution(row: Mapping[str, Any]) -> dict[str, Any]:
    """Divide GSM8K's answer into the solution and the number."""
    solution, _, number = row["answer"].partition("####")
    return {"question": row["question"], "solution": solution.strip(), "answer": number.strip()}


Case = tuple[Callable[[Path], tuple[Rows, Rows]], tuple[str, ...]]
"""A function from the folder DATA to training and test rows, and further settings of `teach`."""
CASES: dict[str, Case] = {
    "banking77": (banking, ()),
    "banking10": (lambda data: banking(data, TEN), ()),
    "snips": (snips, ("answer=intent,slots", "rule={here}/snips_rule.py:extract")),
    "svamp": (svamp, ()),
    "gsm8k": (gsm8k, ()),
}


def draw(case: str, seed: int, data: Path, folder: Path, cases: Mapping[str, Case] = CASES) -> list[str]:
    """Write the rows of a seed into `folder`, as train.jsonl and test.jsonl. Return the further settings of `teach` for the case."""
    load, keys = cases[case]
    train, test = load(data)
    random.Random(1).shuffle(test)
    random.Random(f"{case} {seed}").shuffle(train)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train[:TRAIN]), ("test", test[:TEST])):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return [key.format(here=Path(__file__).parent.absolute()) for key in keys]


def run(case: str, seed: int, data: Path, base: str, minutes: float, folder: Path) -> dict[str, Any]:
    """Teach one model, and return its results."""
    keys = draw(case, seed, data, folder)
    arguments = [
        "train.jsonl",
        "test=test.jsonl",
        f"base={base}",
        f"minutes={minutes:g}",
        "threads=1",
        f"seed={seed}",
        "out=run",
        f"rung={TAUGHT}",
        *keys,
    ]
    command = [sys.executable, "-c", "from rorqual.cli.main import main; main()", "teach", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    began = time.time()
    subprocess.run(command, cwd=folder, check=True, env=environment)
    paths = TeachPaths(folder / "run")
    stages = {entry.stage: [round(entry.seconds), round(entry.core_seconds)] for entry in read_ledger(paths.ledger)}
    names = json.loads(paths.choice.read_bytes())
    return {
        "case": case,
        "seed": seed,
        "minutes": minutes,
        "began": time.strftime("%Y-%m-%d %H:%M", time.gmtime(began)),
        "rorqual": rorqual.__version__,
        "right": {
            AFTER if name == TAUGHT else name: bits(Evaluation.load(paths.evaluation_file(name)))
            for name in names.values()
        },
        "stages": stages,
        "plan": json.loads(paths.plan.read_bytes()),
        "grpo": json.loads(paths.grpo_result.read_bytes())["text"],
        "dev": [json.loads(line) for line in paths.dev.read_text().splitlines()],
        "ended_early": paths.ended_early.exists(),
        "peak_bytes": json.loads(paths.memory.read_bytes())["peak_bytes"],
        "sentences": json.loads(paths.results.read_bytes())["sentences"],
    }


def bits(evaluation: Evaluation) -> str:
    """Return one digit per test example, in the order of their keys: 1 if the reply is right."""
    ordered = sorted(evaluation.samples, key=lambda one: one.key)
    return "".join(str(int(one.verdict is Verdict.RIGHT)) for one in ordered)


def kind_of(name: str) -> str:
    """Return the name of a baseline without its number of examples, which depends on the seed."""
    if name.startswith("base, ") and name not in (BEFORE, "base, 4 examples"):
        return "base, as many examples as fit"
    return name


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return, for each case, the mean accuracy of each baseline, and the taught model's gain with both 99 % intervals.

    The intervals are over seeds and examples, or over examples alone if there is one seed. `beyond_doubt` is true if both lie
    above 0 and there are at least five seeds. `p_by_seed` has the p-value of McNemar's exact test of each seed, whose replies are
    to the same test examples.
    """
    found: dict[str, Any] = {}
    for case, minutes in sorted({(one["case"], one["minutes"]) for one in runs}):
        own = [one for one in runs if (one["case"], one["minutes"]) == (case, minutes)]
        rows: dict[str, Any] = {}
        values = [
            {kind_of(name): np.array([int(bit) for bit in bits]) for name, bits in one["right"].items()} for one in own
        ]
        for name in Counter(name for one in values for name in one):
            pairs = [(one[name], one[AFTER]) for one in values if name in one]
            by_seed = [float(old.mean()) for old, _ in pairs]
            row: dict[str, Any] = {"right": float(np.mean(by_seed)), "right_by_seed": by_seed, "seeds": len(pairs)}
            if name != AFTER:
                row["p_by_seed"] = [mcnemar(old, new) for old, new in pairs]
                gains = [float(new.mean() - old.mean()) for old, new in pairs]
                sides = [old for old, _ in pairs], [new for _, new in pairs]
                boot = hierarchical_difference(*sides, CONFIDENCE, shared=len(pairs) > 1)  # the same test examples
                t = t_interval(gains if len(pairs) > 1 else pairs[0][1] - pairs[0][0], CONFIDENCE)
                row |= {
                    "gain": float(np.mean(gains)),
                    "gains": gains,
                    "bootstrap": [boot.interval.low, boot.interval.high],
                }
                row |= {"student_t": [t.low, t.high], "beyond_doubt": judge(boot.interval, gains) == "holds"}
            rows[name] = row
        found[f"{case}, {minutes:g} minutes"] = rows
    return found


def costs(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return, for each case, the minutes that count, those of the baselines, and the memory, of each seed."""
    found: dict[str, Any] = {}
    for one in runs:
        seconds = {stage: value for stage, [value, _] in one["stages"].items()}
        training = sum(
            value
            for stage, value in seconds.items()
            if stage not in (*UNCOUNTED, BASELINES, "measure", "test", "report")
        )
        row = {
            "minutes": training / 60,
            "baselines_minutes": sum(seconds.get(stage, 0) for stage in (BASELINES, *UNCOUNTED)) / 60,
            "measure_minutes": sum(seconds.get(stage, 0) for stage in ("measure", "test")) / 60,
            "peak_gib": one["peak_bytes"] / 2**30,
        }
        case = found.setdefault(f"{one['case']}, {one['minutes']:g} minutes", {})
        for name, value in {"seeds": one["seed"], **row}.items():
            case.setdefault(name, []).append(value)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("base")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--cases", default="banking77,snips,svamp")
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--keep", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    for seed in map(int, options.seeds.split(",")):
        for case in options.cases.split(","):
            known = json.loads(options.out.read_bytes())["runs"] if options.out.exists() else []
            if any((one["case"], one["seed"], one["minutes"]) == (case, seed, options.minutes) for one in known):
                continue
            folder = options.keep / f"{case}-{seed}-{options.minutes:g}"
            base = str(Path(options.base).absolute())
            result = run(case, seed, options.data.absolute(), base, options.minutes, folder)
            known = json.loads(options.out.read_bytes())["runs"] if options.out.exists() else []
            runs = sorted([*known, result], key=lambda one: (one["case"], one["minutes"], one["seed"]))
            command = "python benchmarks/teach.py DATA BASE --keep FOLDER"
            write_json(options.out, {"command": command, "summary": summary(runs), "costs": costs(runs), "runs": runs})
    print(json.dumps(summary(json.loads(options.out.read_bytes())["runs"]), indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
