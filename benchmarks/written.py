"""Measure what rows that a teacher wrote add: BANKING77, 500 rows of each of five seeds, with 500 written rows and without.

    python benchmarks/written.py DATA --keep FOLDER [--teachers oracle,rules] [--seeds 1,2,3,4,5] [--write 500]

The rows and seeds are those of `benchmarks/teach.py`. The teacher is a server of this file, which `rorqual teach` asks over HTTP as it would
ask any other:

- `oracle` answers with real rows of the label that is asked for, which the seed left unused. It is an upper bound: no model writes inputs that
  are more like the file's.
- `rules` replaces words of the examples that it is shown by synonyms.

Both classify an input as they wrote it. Every tenth row that they write is a copy or a near-copy of a test row. The result is
docs/results/written.json: how many rows were used and dropped, how many planted rows were found, and for each rung that was measured with
written rows its accuracy on the 200 test examples with and without, and the difference with both 99 % intervals. The command resumes.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import sys
import threading
import time
from collections import Counter, defaultdict
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from record import made_by

from rorqual.core.journal import read_lines
from rorqual.core.ledger import Ledger
from rorqual.core.records import write_json
from rorqual.evals.stats import hierarchical_difference, t_interval
from rorqual.evals.verdict import CONFIDENCE, judge
from rorqual.tasks.examples import ExamplesTask
from rorqual.tasks.file_task import normalize_text
from rorqual.teach.config import TeachConfig
from rorqual.teach.held_out import WITH_WRITTEN
from rorqual.teach.measure import evaluate_guesses, test_problems
from rorqual.teach.paths import TeachPaths
from rorqual.teach.rungs.storage import load_rung
from rorqual.teach.stages import TeachStages
from teach import RESULT, TEST, TRAIN, banking, bits, draw

RUNG = "logistic regression, embeddings"
"""The rung of the comparison, named before anything was measured; a run in which it has no version with written rows is an error."""
PLANTED = 10
"""Every `PLANTED`-th written row is a copy or a near-copy of a test row."""
SYNONYMS = {
    "how": "in what way", "can": "could", "i": "someone", "my": "the", "card": "bank card", "payment": "transaction",
    "money": "funds", "account": "profile", "transfer": "wire", "why": "for what reason", "what": "which",
    "is": "was", "was": "is", "do": "would", "need": "want", "want": "need", "get": "receive", "got": "received",
    "have": "possess", "charged": "billed", "fee": "cost", "charge": "fee", "change": "alter", "pin": "secret code",
    "lost": "missing", "stolen": "taken", "help": "assist", "please": "kindly", "where": "in which place",
    "when": "at what time", "use": "employ", "work": "function", "working": "functioning", "declined": "refused",
    "cash": "banknotes", "exchange": "conversion", "rate": "ratio", "top": "load", "up": "more", "long": "much time",
    "take": "need", "pending": "waiting", "received": "seen", "wrong": "incorrect", "a": "one", "the": "that",
    "to": "so as to", "for": "because of", "from": "out of", "in": "within", "you": "your bank", "it": "this",
    "this": "it", "not": "never",
}  # fmt: skip
"""Words and what the teacher `rules` writes for them."""


class Teacher:
    """A server with OpenAI's API for chats. `unused` has real rows by label for the oracle, or is empty for the teacher of rules."""

    def __init__(self, unused: dict[str, list[str]], tests: list[str]) -> None:
        self.unused, self.tests = unused, tests
        self.planted: list[str] = []
        self.label_of: dict[str, str] = {}
        self.lock, teacher = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with teacher.lock:
                    text = teacher.answer(body["messages"][-1]["content"], random.Random(body["seed"]))
                choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                raw = json.dumps({"model": "teacher-1", "choices": [choice]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, prompt: str, rng: random.Random) -> str:
        """Return rows as JSON lines, or the label of an input."""
        if prompt.startswith("Answer with one of: "):
            return self.label_of.get(normalize_text(prompt.split("\n\n", 1)[1]), "none")
        _, shown, asked = prompt.split("\n\n")
        if "as a JSON object" in prompt:
            pairs = [json.loads(line) for line in shown.split("\n")]
            label, examples = pairs[0]["answer"], [pair["prompt"] for pair in pairs]
        else:
            label, examples = re.match("These inputs have the answer (.*):", prompt)[1], shown.split("\n")  # type: ignore[index]
        count = int(re.search(r"Write (\d+) new", asked)[1])  # type: ignore[index]
        found = []
        for row in self.rows_of(label, examples, count, rng):
            if len(self.label_of) % PLANTED == PLANTED - 1:
                row = rng.choice(self.tests)
                row = rng.choice([row, row.upper(), f"Hello, {row}", row[:-1]])
                self.planted.append(row)
            self.label_of[normalize_text(row)] = label
            found.append(row)
        return "\n".join(json.dumps({"prompt": row, "answer": label}) for row in found)

    def rows_of(self, label: str, examples: list[str], count: int, rng: random.Random) -> list[str]:
        if self.unused:
            return rng.sample(self.unused[label], min(count, len(self.unused[label])))
        return [" ".join(SYNONYMS.get(w, w) if rng.random() < 0.8 else w for w in re.findall(r"\w+|[?.,!]", one.lower()))
                for one in (rng.choice(examples) for _ in range(count))]  # fmt: skip


def run(name: str, seed: int, data: Path, folder: Path, write: int) -> dict[str, Any]:
    """Measure all rungs on the rows of one seed with a teacher, and return the results."""
    draw("banking77", seed, data, folder)
    train, test = ([*read_lines(folder / f"{part}.jsonl")] for part in ("train", "test"))
    used = {normalize_text(row["text"]) for row in (*train, *test)}
    unused: dict[str, list[str]] = defaultdict(list)
    for row in banking(data)[0] if name == "oracle" else []:
        if normalize_text(row["text"]) not in used:
            unused[row["category"]].append(row["text"])
    teacher = Teacher(unused, [row["text"] for row in test])
    config = TeachConfig(
        file=str(folder / "train.jsonl"),
        test=str(folder / "test.jsonl"),
        base="none",
        teacher=teacher.url,
        model="teacher-1",
        write=write,
        seed=seed,
        minutes=100,
    )
    paths, began = TeachPaths(folder / name), time.process_time()
    with closing(Ledger(paths.ledger)) as ledger:
        stages = TeachStages(config, paths, 1, ledger, lambda *_: None, "")
        stages.prepare_data()
        stages.climb_cheap_rungs()
        climb, task = stages.climb, ExamplesTask(paths.data)
        problems = test_problems(task)
        right: dict[str, str] = {}
        for end in ("", WITH_WRITTEN):
            climb.fit_and_save(stages.rungs[RUNG + end])
            rung = load_rung(paths.rung_file(RUNG + end))
            guesses = rung.predict([one.prompt for one in problems])
            right[RUNG + end] = bits(evaluate_guesses(RUNG + end, task, problems, guesses))
    teacher.http.shutdown()
    rows = [*read_lines(paths.teacher / "written.jsonl")]
    kept = {row["prompt"] for row in rows if not row["dropped"]}
    tests = {normalize_text(row["text"]) for row in test}
    return {
        "teacher": name,
        "seed": seed,
        "train": len(climb.pool),
        "written": len(rows),
        "used": len(kept),
        "dropped": dict(Counter(row["dropped"] for row in rows if row["dropped"])),
        "planted": sum(row["prompt"] in teacher.planted for row in rows),
        "planted_used": sum(row in kept for row in teacher.planted),
        "test_rows_used": sum(normalize_text(row) in tests for row in kept),
        "held_out": {one.name: [sum(one.right.values()), len(one.right)] for one in climb.results},
        "chosen": climb.best.name,
        "right": right,
        "core_seconds": round(time.process_time() - began),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return for each teacher the accuracy with and without written rows, and the difference with both 99 % intervals."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(one["teacher"] for one in runs):
        own = [one for one in runs if one["teacher"] == name]
        before, after = (
            [np.array([int(bit) for bit in one["right"][RUNG + end]]) for one in own] for end in ("", WITH_WRITTEN)
        )
        gains = [float(b.mean() - a.mean()) for a, b in zip(before, after, strict=True)]
        row: dict[str, Any] = {
            "without": float(np.mean([one.mean() for one in before])),
            "with": float(np.mean([one.mean() for one in after])),
            "gain": float(np.mean(gains)),
            "gain_by_seed": gains,
            "used": [one["used"] for one in own],
            "planted": sum(one["planted"] for one in own),
            "planted_used": sum(one["planted_used"] for one in own),
            "test_rows_used": sum(one["test_rows_used"] for one in own),
            "chosen_with_written_rows": sum(one["chosen"].endswith(WITH_WRITTEN) for one in own),
        }
        if len(own) > 1:
            boot = hierarchical_difference(before, after, CONFIDENCE, shared=True).interval
            student = t_interval(gains, CONFIDENCE)
            row |= {"bootstrap": [boot.low, boot.high], "student_t": [student.low, student.high]}
            row["better_with_written_rows"] = judge(boot, gains)
        found[name] = row
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--teachers", default="oracle,rules")
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--write", type=int, default=500)
    parser.add_argument("--keep", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--result", type=Path, default=RESULT.with_name("written.json"))
    given = parser.parse_args()
    runs = json.loads(given.result.read_bytes())["runs"] if given.result.exists() else []
    made = made_by({given.data: "DATA", given.keep: "FOLDER"}) | {"rows": TRAIN, "test": TEST, "write": given.write}
    for name in given.teachers.split(","):
        for seed in map(int, given.seeds.split(",")):
            if any((one["teacher"], one["seed"]) == (name, seed) for one in runs):
                continue
            runs.append(run(name, seed, given.data.absolute(), given.keep / f"{name}-{seed}", given.write))
            write_json(given.result, {"made by": made, "summary": summary(runs), "runs": runs})
            print(name, seed, runs[-1] | {"right": ""}, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
