"""Grade labelled pairs of gold answer and reply with our graders, with math-verify alone, and with lm-evaluation-harness.

    python benchmarks/graders.py                              # tests/tasks/pairs/known.jsonl, our graders only
    python benchmarks/graders.py --pairs FILE                 # other pairs in the same format
    python benchmarks/graders.py --harness VENV/bin/python    # also the harness, from a Python with `pip install "lm_eval[math]"`

The harness needs a separate environment, because it requires another version of antlr. See `peers_graders/harness.py`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from record import ROOT, made_by

from rorqual.core.records import write_json
from rorqual.tasks.find import load_task

Pair = dict[str, Any]
HARNESS = ROOT / "benchmarks" / "peers_graders" / "harness.py"
COUNTS = ("wrong accepted", "right refused", "ungraded")


def row(pair: Pair) -> dict[str, Any]:
    """Return a row in the format of the task's file, with a placeholder question."""
    task = pair["task"]
    if task == "gsm8k":
        return {"question": "?", "answer": f"#### {pair['gold']}"}
    if task == "math500":
        return {"problem": "?", "answer": pair["gold"]}
    if task == "folio":
        return {"premises": ["?"], "conclusion": "?", "label": pair["gold"]}
    people = {"names": pair["names"], "solution": pair["solution"]}
    return {"quiz": "?", "statements": "?", "cot_head": "", "cot_repeat_steps": [], "cot_foot": ""} | people


def ours(pairs: list[Pair]) -> list[str]:
    """Return our verdicts. All `pairs` have the same task, which reads the problems from a file as usual."""
    name = pairs[0]["task"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "test.jsonl"
        file.write_text("".join(json.dumps(row(pair)) + "\n" for pair in pairs), encoding="utf-8")
        # math-verify's timeout is wall-clock time, and five seconds are too few on a busy machine.
        task: Any = load_task(name, data=file, options={"timeout": 60} if name == "math500" else {})
        problems = task.load("test")
    return [task.grade(problem, pair["reply"]).value for problem, pair in zip(problems, pairs, strict=True)]


def theirs(python: Path, pairs: Path) -> dict[str, Any]:
    """Return the verdicts and versions of the other graders, from a process in their environment."""
    done = subprocess.run([str(python), str(HARNESS), str(pairs)], check=True, stdout=subprocess.PIPE, encoding="utf-8")
    found: dict[str, Any] = json.loads(done.stdout.strip().split("\n")[-1])
    return found


def counted(pairs: Iterable[Pair], verdicts: Iterable[str]) -> dict[str, int]:
    """Count wrong replies that were accepted, right ones that were refused, and ungraded ones."""
    found: Counter[str] = Counter()
    for pair, verdict in zip(pairs, verdicts, strict=True):
        if verdict == "ungraded":
            found["ungraded"] += 1
        elif verdict != pair["label"]:
            found["wrong accepted" if verdict == "right" else "right refused"] += 1
    return {name: found[name] for name in COUNTS}


def main() -> None:
    """Run all graders on one file of pairs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=Path, default=ROOT / "tests/tasks/pairs/known.jsonl")
    parser.add_argument("--harness", type=Path, help="a Python with lm_eval[math]")
    parser.add_argument("--result", type=Path, default=Path("docs/results/graders.json"))
    a = parser.parse_args()
    tasks: dict[str, list[Pair]] = defaultdict(list)
    for line in a.pairs.read_text(encoding="utf-8").split("\n"):
        if line.strip():
            pair = json.loads(line)
            tasks[pair["task"]].append(pair)
    peers = theirs(a.harness, a.pairs) if a.harness else {"verdicts": {}, "versions": {}}
    table: list[dict[str, Any]] = []
    for task, pairs in tasks.items():
        table.append({"task": task, "grader": "rorqual", "pairs": len(pairs)} | counted(pairs, ours(pairs)))
        for name, verdicts in peers["verdicts"].get(task, {}).items():
            table.append({"task": task, "grader": name, "pairs": len(pairs)} | counted(pairs, verdicts))
    print(markdown(table))
    write_json(
        a.result,
        {
            "what": "labelled pairs that each grader judges otherwise than they are labelled",
            "made by": made_by({a.pairs: "PAIRS", a.harness: "PYTHON"}),
            "versions of the peers": peers["versions"],
            "peers": "lm_eval: tasks/gsm8k/gsm8k.yaml, tasks/minerva_math/utils.py, tasks/hendrycks_math/utils.py",
            "graders": table,
        },
    )


def markdown(table: list[dict[str, Any]]) -> str:
    names = ("task", "grader", "pairs", *COUNTS)
    lines = ["| " + " | ".join(names) + " |", re.sub(r"[^|]+", "---", "|" + "x|" * len(names))]
    return "\n".join([*lines, *("| " + " | ".join(str(line[name]) for name in names) + " |" for line in table)])


if __name__ == "__main__":
    main()
