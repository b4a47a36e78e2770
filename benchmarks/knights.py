"""Fine-tune a small model on knights and knaves with step traces, and compare its test accuracy with chance.

    python benchmarks/knights.py --data kk          # 4,500 training problems of 3 to 7 people, 500 test problems

The result lists the two equivalent shell commands. Nothing was chosen on the test split.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from record import made_by

from rorqual.core.records import RunDir, write_json
from rorqual.engine.engine import Engine
from rorqual.engine.request import SamplingParams
from rorqual.evals.evaluating import evaluate
from rorqual.evals.evaluation import Evaluation, EvaluationRow
from rorqual.evals.table import table
from rorqual.model.account import account
from rorqual.recipes import make_run
from rorqual.tasks.find import load_task
from rorqual.train.loop import fit


def settings(a: argparse.Namespace) -> dict[str, str]:
    """Return the `key=value` arguments of `rorqual train sft`. A fifth of the samples has no thinking, to measure that mode too."""
    people = ", ".join(map(str, a.people))
    return {
        "task": "knights",
        "data": str(a.data),
        "options": f"{{people: [{people}]}}",
        "tokenizer": "bpe:1024",
        "steps": str(a.steps),
        "rows": str(a.rows),
        "row": str(a.row),
        "think": "0.8",
        "source.longer": "skip",
        "micro_batches": str(min(a.rows, 4)),
        "seed": str(a.seed),
    }


def row(found: EvaluationRow) -> dict[str, Any]:
    """Return one row of the result, with shares of 1."""
    return {
        "people": found.level,
        "problems": found.problems,
        "right": found.right,
        "accuracy": found.accuracy,
        "95 % interval": [found.interval.low, found.interval.high],
        "baselines": found.baselines,
        "thought": found.thought,
        "mean length": found.length,
        "cut off": found.truncated,
    }


def people_right(found: Evaluation) -> dict[str, float]:
    """Return a milder score: the share of people, over all problems, with the right role. Chance is one half."""
    right = total = 0
    for sample in found.samples:
        for fact in re.findall(r"[A-Z]\w* is a \w+", sample.answer):
            right += fact in sample.reply
            total += 1
    return {"right": right, "people": total, "share": right / total, "chance": 0.5}


def main() -> None:
    """Train or resume, evaluate with and without thinking, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/knights"))
    parser.add_argument("--result", type=Path, default=Path("docs/results/knights.json"))
    parser.add_argument("--people", type=int, nargs="+", default=[3, 4, 5, 6, 7])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--row", type=int, default=1024)
    parser.add_argument("--count", type=int, default=100, help="test problems for each number of people")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    run, folder = make_run("sft", settings(a)), RunDir(a.out)
    fit(run, folder, threads=a.threads)
    task = load_task("knights", data=a.data, options={"people": a.people})
    engine = Engine(folder.path, threads=a.threads, record_experts=False)
    modes: dict[str, Any] = {}
    for thinking in ("auto", "off"):
        found = evaluate(engine, task, count=a.count, thinking=thinking, per_family=True, model="knights",
                         params=SamplingParams(max_tokens=a.row))  # fmt: skip
        found.save(a.out / "evals" / f"knights-test-{thinking}.json")
        print(table(found))
        rows = [*found.rows("level"), *found.rows("all")]
        modes[thinking] = {"rows": [row(r) for r in rows], "each person": people_right(found)}
    records = list(folder.metrics())
    cost = account(run.model, context=a.row)
    places = {a.data: "kk", a.out: "runs/knights"}
    words = " ".join(f"'{k}={v}'" if " " in v else f"{k}={v}" for k, v in settings(a).items())
    people = f"'options={settings(a)['options']}'"
    document = {
        "what": "knights and knaves, test problems (greedy), after fine-tuning a fresh model on the training problems and traces",
        "made by": made_by(places),
        "by hand": [
            f"rorqual train sft {words} out=runs/knights".replace(str(a.data), "kk"),
            f"rorqual eval runs/knights task=knights data=kk {people} per_family=true count={a.count} max_tokens={a.row}",
        ],
        "parameters": cost.total,
        "active": cost.active,
        "training": {
            "steps": run.steps,
            "tokens": sum(record["tokens"] for record in records),
            "core_seconds": round(sum(record["core_seconds"] for record in records)),
            "last loss": records[-1]["loss"],
        },
        "measured": modes,
    }
    write_json(a.result, document)
    print(a.result)


if __name__ == "__main__":
    main()
