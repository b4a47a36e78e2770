"""Fine-tune a small model on GSM8K and one on FOLIO. Evaluate them on the held-out files and MATH-500, and compare with chance.

    python benchmarks/public.py --data FOLDER      # with gsm8k/, folio/ and math500/ in it

The models have a million parameters and saw no other text, so scores near chance are expected.
The benchmark shows that the pipeline from a data file to a score with an interval works.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from record import made_by

from rorqual.core.records import RunDir, write_json
from rorqual.engine.engine import Engine
from rorqual.engine.request import SamplingParams
from rorqual.evals.evaluating import evaluate
from rorqual.evals.table import table
from rorqual.model.account import account
from rorqual.recipes import make_run
from rorqual.tasks.find import load_task
from rorqual.train.loop import fit

TRAINED = {
    "gsm8k": {"tokenizer": "bpe:1024", "row": "512", "rows": "8", "think": "1.0", "source.longer": "skip"},
    "folio": {"tokenizer": "bpe:1024", "row": "1024", "rows": "4", "think": "0.0", "source.longer": "skip"},
}
MEASURED = (("gsm8k", "gsm8k", 256), ("gsm8k", "math500", 256), ("folio", "folio", 16))
"""(training task, evaluation task, maximum tokens of an answer)."""


def trained(name: str, a: argparse.Namespace) -> tuple[RunDir, dict[str, Any]]:
    """Fine-tune a run on a task's training file. Return it with a summary."""
    values = {"task": name, "data": str(a.data / name), "steps": str(a.steps), "seed": "0"} | TRAINED[name]
    run, folder = make_run("sft", values), RunDir(a.out / name)
    fit(run, folder, threads=a.threads)
    records, cost = list(folder.metrics()), account(run.model)
    words = " ".join(f"{key}={value}" for key, value in values.items()).replace(str(a.data), "DATA")
    return folder, {
        "command": f"rorqual train sft {words} out=runs/public/{name}",
        "parameters": cost.total,
        "active": cost.active,
        "tokens": sum(record["tokens"] for record in records),
        "core_seconds": round(sum(record["core_seconds"] for record in records)),
        "first and last loss": [records[0]["loss"], records[-1]["loss"]],
    }


def measured(folder: RunDir, task: str, max_tokens: int, a: argparse.Namespace) -> dict[str, Any]:
    """Evaluate greedily on the held-out problems that fit the model's context."""
    engine = Engine(folder.path, threads=a.threads, record_experts=False)
    loaded = load_task(task, data=a.data / task)
    room = engine.max_len - max_tokens
    every = list(loaded.problems("test", 0))
    fitting = [p for p in every if len(engine.chat.prompt(p.messages)) <= room][: a.count]
    found = evaluate(engine, loaded, problems=fitting, count=len(fitting), model=folder.path.name,
                     params=SamplingParams(max_tokens=max_tokens))  # fmt: skip
    print(table(found))
    found.save(folder.path / "evals" / f"{task}.json")
    (row,) = found.rows("all")
    return {
        "trained on": folder.path.name,
        "measured on": task,
        "problems": row.problems,
        "left out, too long": sum(len(engine.chat.prompt(p.messages)) > room for p in every),
        "right": row.right,
        "ungraded": row.ungraded,
        "accuracy": row.accuracy,
        "accuracy, last answer": row.last,
        "95 % interval": [row.interval.low, row.interval.high],
        "baselines": row.baselines,
        "cut off": row.truncated,
    }


def main() -> None:
    """Train two models, run three evaluations and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/public"))
    parser.add_argument("--result", type=Path, default=Path("docs/results/public.json"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--count", type=int, default=1319)
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    runs = {name: trained(name, a) for name in TRAINED}
    document = {
        "what": "small models fine-tuned from nothing on one training file, on held-out files: near chance, as expected",
        "made by": made_by({a.data: "DATA", a.out: "runs/public"}),
        "training": {name: about for name, (_, about) in runs.items()},
        "measured": [measured(runs[model][0], task, tokens, a) for model, task, tokens in MEASURED],
    }
    write_json(a.result, document)


if __name__ == "__main__":
    main()
