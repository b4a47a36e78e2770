"""A quickstart folder of invented figures: the same at every call, with what a report finds hard in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from rorqual.engine.request import SamplingParams
from rorqual.evals.evaluation import Evaluation, GradedSample
from rorqual.tasks.task import Verdict

FAMILIES = ("addition", "multiplication", "sorting", "counters", "deduction", "parity")
LEVELS = ("1", "2", "3", "10")
NASTY = "<script>alert('x')</script> & \"quoted\" <img src=http://example.invalid/x.png>"
# How right: at once, thinking before GRPO, thinking after; how often it thinks before and after.
TRUTH = {
    "addition": (0.15, 0.82, 0.88, 0.35, 1.0),
    "multiplication": (0.05, 0.70, 0.72, 0.30, 0.98),
    "sorting": (0.30, 0.90, 0.91, 0.50, 0.97),
    "counters": (0.20, 0.60, 0.75, 0.45, 1.0),
    "deduction": (0.50, 0.55, 0.52, 0.60, 0.62),
    "parity": (0.50, 0.97, 0.97, 0.70, 0.99),
}


def samples(when: str, mode: str, count: int) -> list[GradedSample]:
    made = []
    for place, family in enumerate(FAMILIES):
        random = np.random.default_rng([place, ["before", "after"].index(when), ["auto", "on", "off"].index(mode)])
        at_once, before, after, old_share, new_share = TRUTH[family]
        for number in range(count):
            level = LEVELS[number % len(LEVELS)]
            share = {"on": 1.0, "off": 0.0, "auto": old_share if when == "before" else new_share}[mode]
            thinks = bool(random.random() < share)
            rate = (before if when == "before" else after) if thinks else at_once
            right = random.random() < rate - 0.08 * (LEVELS.index(level) - 1.5)
            length = int(random.integers(8, 20)) + 6 * LEVELS.index(level) if thinks else 0
            made.append(
                GradedSample(
                    key=f"{family}:{number}",
                    family=family,
                    level=level,
                    prompt=f"What is {number} and so on, in {family}? {NASTY}",
                    answer="42 & <b>",
                    reply="42 & <b>" if right else f"41 {NASTY}",
                    reasoning=f"first 1+1=2\nthen {NASTY}" if thinks else None,
                    verdict=Verdict.RIGHT if right else Verdict.UNGRADED if number % 41 == 7 else Verdict.WRONG,
                    tokens=length + 4,
                    thinking_tokens=length,
                    thought=thinks,
                    truncated=number % 29 == 3,
                )
            )
    return made


def write_evaluations(folder: Path, count: int) -> None:
    for when in ("before", "after"):
        for mode in ("auto", "on", "off"):
            Evaluation(
                task="families",
                model=f"{when} GRPO",
                split="test",
                seed=3,
                count=count // len(LEVELS),
                per_family=True,
                thinking=mode,
                params=SamplingParams(max_tokens=96),
                samples=tuple(samples(when, mode, count)),
                baselines={family: {"majority class": 0.5 if family == "parity" else 0.03} for family in FAMILIES},
                usage={"completion_tokens": 1234},
                seconds=1.5,
            ).save(folder / "evals" / f"{when}-{mode}.json")


def write_metrics(folder: Path) -> None:
    random = np.random.default_rng(0)
    sft, grpo = [], []
    for step in range(400):
        loss = 0.25 + 3.5 * np.exp(-step / 60) + 0.05 * random.standard_normal()
        sft.append({"step": step, "loss/next_token": loss, "loss/mtp": loss * 1.3 + 0.1})
    for step in range(120):
        up = 1 - np.exp(-step / 25)
        record = {"step": step, "reward": 0.35 + 0.4 * up + 0.05 * random.standard_normal(), "groups_total": 16}
        record |= {"groups_equal": int(4 + 4 * up), "logprob_diff_mean": 2e-7, "logprob_diff_max": 3e-5}
        grpo.append(record | {"routing_flips": 1})
    for name, records in (("base", sft), ("teacher", grpo)):
        lines = b"".join(json.dumps(record).encode() + b"\n" for record in records)
        (folder / name).mkdir()
        (folder / name / "metrics.jsonl").write_bytes(lines + b'{"step": 9')


def write_rest(folder: Path) -> None:
    stages = [("fine-tuning", 3_300_000, 161.0), ("GRPO", 1_100_000, 240.5), ("measuring", 400_000, 41.2)]
    summary = {
        "model": {"total": 1_812_480, "active": 402_176, "cache_bytes_per_token": 1280, "flops_per_token": 912_384},
        "stages": [
            {"name": name, "tokens": tokens, "flops": 1000 * tokens, "core_seconds": core, "seconds": core / 1.9}
            for name, tokens, core in stages
        ],
        "seed": 0,
        "command": "rorqual quickstart --out runs/quickstart --seed 0",
    }
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def write_folder(folder: Path, count: int = 120) -> Path:
    """All files that `build_report` reads, for `count` problems of each family."""
    write_evaluations(folder, count)
    write_metrics(folder)
    write_rest(folder)
    return folder


BRANCHES = {
    "teacher": (("auto", "on"), 0.9, ("fine-tuning", "GRPO")),
    "student-base": (("auto", "on"), 0.2, ("base student",)),
    "distilled": (("auto", "on"), 0.7, ("sampling", "distilling")),
    "reinforced": (("auto", "on"), 0.35, ("reinforcing",)),
    "answers-only": (("auto",), 0.3, ("sampling", "answers")),
}
STUDENT_STAGES = {"base student": 40.0, "sampling": 20.0, "distilling": 80.0, "answers": 70.0, "reinforcing": 95.0}


def branch_samples(branch: str, mode: str, rate: float, count: int) -> list[GradedSample]:
    """Answers of one branch to the student's problems; the distilled one is best at the second family only a little."""
    random = np.random.default_rng([list(BRANCHES).index(branch), ["auto", "on"].index(mode)])
    thinks = branch not in ("answers-only", "student-base") or mode == "on"
    return [
        GradedSample(
            key=f"{family}:{number}",
            family=family,
            level=LEVELS[number % 2],
            prompt=f"{family} {number}?",
            answer="42",
            reply=NASTY,
            reasoning="so" if thinks else None,
            verdict=Verdict.RIGHT if random.random() < rate - 0.15 * place else Verdict.WRONG,
            tokens=20 if thinks else 4,
            thinking_tokens=16 if thinks else 0,
            thought=thinks,
            truncated=False,
        )
        for place, family in enumerate(FAMILIES[:2])
        for number in range(count)
    ]


def write_students(folder: Path, count: int = 120, rates: dict[str, float] | None = None) -> Path:
    """What the student's stages add to a folder that `write_folder` wrote."""
    summary = json.loads((folder / "summary.json").read_bytes())
    for branch, (modes, rate, _) in BRANCHES.items():
        for mode in modes:
            Evaluation(
                task="students",
                split="test",
                seed=0,
                count=count // 2,
                per_family=True,
                thinking=mode,
                params=SamplingParams(),
                samples=tuple(branch_samples(branch, mode, (rates or {}).get(branch, rate), count)),
            ).save(folder / "evals" / f"student-{branch}-{mode}.json")
    summary["stages"] += [
        {"name": name, "tokens": 10**6, "flops": 10**12, "solved": 500, "core_seconds": core, "seconds": core / 2}
        for name, core in STUDENT_STAGES.items()
    ]
    summary["branches"] = [
        {"name": name, "title": name.replace("-", " "), "modes": list(modes), "stages": list(stages)}
        for name, (modes, _, stages) in BRANCHES.items()
    ]
    summary |= {
        "student": {"total": 70_000, "active": 70_000},
        "core_hour": 0.25,
        "samples": {"sampled": 1500, "right": 1300, "kept": 1250},
    }
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder
