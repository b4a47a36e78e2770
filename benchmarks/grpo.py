"""Compare reinforcement learning and on-policy distillation with TRL's GRPOTrainer and DistillationTrainer (GKDTrainer's successor).

    python benchmarks/grpo.py --work runs/peers                # the times: TRL's settings, then pairs
    python benchmarks/grpo.py --work runs/peers --seeds 5      # and final accuracy over five seeds
    python benchmarks/grpo.py --work runs/peers --smoke        # two steps of everything

Needs `pip install trl accelerate datasets`. Both sides train the same dense student from the same weights, in fp32, on the same
problems in the same order. Grader, group size, updates, samples per update, clip range, AdamW, learning rates and maximum answer
length are also the same. Each training runs in a process of its own. These differences remain:

- TRL divides an update's loss by all its tokens, we by those whose group has both rewards.
- TRL divides advantages by the sample standard deviation, we by the population's.
- Our time includes the check of the sampler, metrics and checkpoints; TRL's includes none of them.

First each TRL setting is timed alone. Then the best one and ours run in alternating pairs. Times exclude the first step, and
a ratio is TRL's time over ours. The command resumes: a finished training is read from WORK.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peer import ROW, Job, Outcome, Setting, format_of, judge
from record import made_by

from rorqual.core.config import Config
from rorqual.core.records import RunDir, write_json
from rorqual.evals.compare import compare_seeds
from rorqual.evals.evaluation import Evaluation, Grain
from rorqual.model.load.run_directory import load_run
from rorqual.recipes.sft import sft
from rorqual.train.loop import fit

HERE = Path(__file__).resolve().parent
RESULT = HERE.parent / "docs" / "results" / "grpo.json"
TASK, HARD = "families:add,sub,swap", 0.3
HELPS = 0.97
"""A setting joins the combination if it takes at most this share of the default setting's time."""
TRIES = 2
"""Number of timings of each setting. The fastest counts, because the machine is shared."""
PATIENCE = 240
"""Timeout in seconds for a setting under trial."""
WHATS = ("grpo", "distil")
GRAINS: tuple[Grain, ...] = ("all", "family")


class Scale(Config):
    """The amount of work. `start_steps` and `teacher_steps` are fine-tuning steps of the initial student and the teacher."""

    start_steps: int = 400
    teacher_steps: int = 600
    steps: int = 16
    problems: int = 16
    samples: int = 8
    max_tokens: int = 80
    tune_steps: int = 4
    per_cell: int = 60


FULL = Scale()
SMOKE = Scale(start_steps=20, teacher_steps=4, steps=2, problems=4, samples=4, max_tokens=16, tune_steps=2, per_cell=4)


class Peers:
    """The trainings under `work`. Each runs once."""

    def __init__(self, work: Path, scale: Scale, threads: int) -> None:
        self.work, self.scale, self.threads = work, scale, threads

    def start(self, seed: int) -> RunDir:
        """Return the initial student of a seed, briefly fine-tuned on worked solutions, half of them without thinking."""
        run = RunDir(self.work / f"start-{seed}")
        made = sft(
            task=TASK,
            size="student",
            steps=self.scale.start_steps,
            think=0.5,
            options={"hard": HARD},
            seed=seed,
            row=ROW,
        )
        fit(made, run, threads=self.threads, quiet=True)
        return run

    def teacher(self) -> RunDir:
        """Return the quickstart's mixture of experts, fine-tuned on worked solutions."""
        run = RunDir(self.work / "teacher")
        made = sft(task=TASK, size="small", steps=self.scale.teacher_steps, options={"hard": HARD}, seed=0, row=ROW)
        fit(made, run, threads=self.threads, quiet=True)
        return run

    def job(self, what: str, seed: int, **changes: Any) -> Job:
        """Return the job of a kind. GRPO makes two updates per step, like our recipe; distillation one, since TRL supports no more."""
        scale = self.scale
        given: dict[str, Any] = {
            "what": what, "start": str(self.start(0).path), "task": TASK, "hard": HARD, "steps": scale.steps,
            "problems": scale.problems, "samples": scale.samples, "max_tokens": scale.max_tokens, "seed": seed,
            "updates": 2, "lr": 1e-4, "threads": self.threads,
        }  # fmt: skip
        if what == "distil":
            given |= {"teacher": str(self.teacher().path), "updates": 1, "lr": 5e-4}
        return Job(**given | changes)

    def outcome(self, job: Job, name: str, *, theirs: bool, limit: float | None = None) -> Outcome | str:
        """Run the job in a process of its own, or read its earlier outcome. Return the reason if it fails or exceeds `limit` seconds."""
        out = self.work / name
        kept, fault = out / "outcome.json", out / "fault.txt"
        if kept.is_file():
            return Outcome.model_validate_json(kept.read_bytes())
        if limit is not None and fault.is_file():
            return fault.read_text(encoding="utf-8")
        write_json(out / "job.json", job.model_dump(mode="json"))
        env = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        words = [sys.executable, str(HERE / ("trl_side.py" if theirs else "peer.py")), str(out / "job.json"), str(out)]
        if theirs and job.setting.processes > 1:
            words[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job.setting.processes}"]
        status, said = run_alone(words, env, limit)
        if status == 0:
            return Outcome.model_validate_json(kept.read_bytes())
        lines = [line for line in said.split("\n") if line.strip()]
        why = f"not done after {limit} s" if status is None else lines[-1][:200] if lines else f"exit status {status}"
        (out / "stderr.txt").write_text(said, encoding="utf-8")
        fault.write_text(why, encoding="utf-8")
        return why

    def must(self, job: Job, name: str, *, theirs: bool) -> Outcome:
        found = self.outcome(job, name, theirs=theirs)
        if isinstance(found, str):
            sys.exit(f"{name}: {found}")
        return found


def run_alone(words: list[str], env: dict[str, str], limit: float | None) -> tuple[int | None, str]:
    """Run a command and return its exit status and stderr. After `limit` seconds, kill its process group and return status None."""
    with subprocess.Popen(
        words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        try:
            _, said = child.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            _, said = child.communicate()
            return None, said
        return child.returncode, said


def variants(threads: int) -> list[dict[str, Any]]:
    """Return the settings that TRL offers on a CPU, one change at a time."""
    changes: list[dict[str, Any]] = [{"attention": "eager"}, {"cache": "static"}, {"cache": "paged"}, {"bf16": True}]
    changes += [{"parts": 2}, {"optim": "foreach"}, {"compiled": True}]
    return [*changes, {"threads": threads}, {"processes": threads}] if threads > 1 else changes


def tune(peers: Peers, what: str) -> tuple[Setting, list[dict[str, Any]]]:
    """Return TRL's fastest setting and the seconds per step of each: every change alone, then the helpful ones combined."""
    plain = Setting()
    found: list[tuple[float, dict[str, Any]]] = []
    listed: list[dict[str, Any]] = []

    def measure(changes: dict[str, Any]) -> float:
        setting = plain.model_copy(update=changes)
        if what == "distil" and setting.cache == "paged":
            return float("inf")  # DistillationTrainer has no such argument
        name = f"tune-{what}/" + ("-".join(f"{key}={value}" for key, value in changes.items()) or "plain")
        job = peers.job(what, 0, steps=peers.scale.tune_steps, setting=setting)
        runs: list[Outcome] = []
        for number in range(TRIES):
            got = peers.outcome(job, f"{name}/{number}", theirs=True, limit=PATIENCE)
            if isinstance(got, str):
                print(f"  {setting!s:60} does not run: {got[:90]}", flush=True)
                listed.append({"setting": str(setting), "fault": got})
                return float("inf")
            runs.append(got)
        seconds = min(one.warm_seconds for one in runs) / (peers.scale.tune_steps - 1)
        cores = min(one.warm_core_seconds for one in runs) / (peers.scale.tune_steps - 1)
        print(f"  {setting!s:60} {seconds:6.2f} s/step, {cores:6.2f} core-seconds", flush=True)
        listed.append(
            {"setting": str(setting), "seconds_a_step": round(seconds, 3), "core_seconds_a_step": round(cores, 3)}
        )
        found.append((seconds, changes))
        return seconds

    base = measure({})
    helpful: dict[str, Any] = {}
    for changes in variants(peers.threads):
        if measure(changes) <= HELPS * base:
            helpful |= changes
    if helpful.get("threads") and helpful.get("processes"):
        del helpful["threads"]  # each would use all cores
    if len(helpful) > 1:
        measure(helpful)
    if not found:
        sys.exit("no TRL setting runs")
    return plain.model_copy(update=min(found, key=lambda one: one[0])[1]), listed


def times(peers: Peers, what: str, pairs: int) -> tuple[dict[str, Any], Setting]:
    """Tune TRL, then time pairs. The side that runs first alternates."""
    print(f"{what}: TRL's settings, each alone")
    best, listed = tune(peers, what)
    rows = []
    for number in range(pairs):
        job = peers.job(what, number, setting=best)
        got: dict[bool, Outcome] = {}
        for theirs in (True, False) if number % 2 else (False, True):
            got[theirs] = peers.must(job, f"pair-{what}-{number}/{'trl' if theirs else 'rorqual'}", theirs=theirs)
        rows.append(pair_row(got[False], got[True]))
        print(f"  pair {number + 1}: {json.dumps(rows[-1])}", flush=True)
    ratios = [row["ratio"] for row in rows]
    middle = statistics.median(ratios)
    print(
        f"{what}: {middle:.2f} times (median of {pairs} pairs; {min(ratios):.2f} to {max(ratios):.2f}); TRL with {best}"
    )
    found = {
        "TRL's settings": listed,
        "TRL's best": str(best),
        "pairs": rows,
        "ratio": {"median": middle, "least": min(ratios), "greatest": max(ratios)},
        "ratio of core-seconds": statistics.median(row["core_ratio"] for row in rows),
        "ratio of seconds a sampled token": statistics.median(row["token_ratio"] for row in rows),
        "versions": got[True].versions,
    }
    return found, best


def pair_row(mine: Outcome, rival: Outcome) -> dict[str, Any]:
    """Compare two trainings of the same job. Sampled lengths differ by chance, so the row also has the ratio of seconds per token."""
    ratio = rival.warm_seconds / mine.warm_seconds
    row = {"ratio": ratio, "core_ratio": rival.warm_core_seconds / mine.warm_core_seconds}
    row["token_ratio"] = ratio * mine.tokens / rival.tokens
    for name, one in (("rorqual", mine), ("TRL", rival)):
        row |= {f"{name} seconds": one.warm_seconds, f"{name} tokens": one.tokens, f"{name} peak MiB": one.peak_mib}
    return {name: round(value, 3) for name, value in row.items()}


def accuracy(peers: Peers, what: str, seeds: int, best: Setting) -> dict[str, Any]:
    """Train both sides from each seed's initial student. Compare the held-out accuracy of TRL, ours and the initial student."""
    found: dict[str, list[Evaluation]] = {"start": [], "TRL": [], "rorqual": []}
    who: dict[str, str] = {}
    for seed in range(seeds):
        start = peers.start(seed)
        changes = {"start": str(start.path), "per_cell": peers.scale.per_cell, "setting": best}
        job = peers.job(what, seed, **changes)
        before = peers.work / f"start-{seed}-evaluated"
        if not (before / "evaluation.json").is_file():
            judge(load_run(start), format_of(start), job, before, "start")
        folders = {"start": before}
        for name, theirs in (("TRL", True), ("rorqual", False)):
            folders[name] = peers.work / f"seed-{what}-{seed}" / name
            who[name] = peers.must(job, str(folders[name].relative_to(peers.work)), theirs=theirs).who
        for name, folder in folders.items():
            found[name].append(Evaluation.load(folder / "evaluation.json"))
        shares = {name: round(share(evaluations[-1]), 4) for name, evaluations in found.items()}
        print(f"{what}, seed {seed}: {json.dumps(shares)}", flush=True)
    result: dict[str, Any] = {
        "seeds": seeds,
        "TRL": who["TRL"],
        "by seed": [{name: round(share(found[name][seed]), 4) for name in found} for seed in range(seeds)],
        "rorqual less TRL": rows_of(found["TRL"], found["rorqual"]),
        "rorqual less start": rows_of(found["start"], found["rorqual"]),
        "TRL less start": rows_of(found["start"], found["TRL"]),
    }
    for row in result["rorqual less TRL"]:
        print(f"  rorqual less TRL, {row['family']}: {row['difference']:+.4f} {row['interval_99']}")
    return result


def share(evaluation: Evaluation) -> float:
    return evaluation.rows("all")[0].accuracy


def rows_of(before: Sequence[Evaluation], after: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Return the differences with hierarchical-bootstrap intervals over seeds and problems."""
    rows = [row for grain in GRAINS for row in compare_seeds(before, after, grain=grain, confidence=0.99)]
    return [
        {
            "family": row.family,
            "before": round(row.before, 4),
            "after": round(row.after, 4),
            "difference": round(row.difference.mean, 4),
            "interval_99": [round(row.difference.interval.low, 4), round(row.difference.interval.high, 4)],
        }
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--what", choices=WHATS, nargs="+", default=list(WHATS))
    parser.add_argument("--pairs", type=int, default=3, help="0: no timing, and TRL's default setting for accuracy")
    parser.add_argument("--seeds", type=int, default=0, help="also measure final accuracy over this many seeds")
    parser.add_argument(
        "--threads", type=int, default=2, help="our threads; TRL is tried with this number and with one"
    )
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--result", type=Path, default=RESULT)
    a = parser.parse_args()
    peers = Peers(a.work.resolve(), SMOKE if a.smoke else FULL, a.threads)
    document: dict[str, Any] = json.loads(a.result.read_bytes()) if a.result.is_file() else {}
    made = made_by({a.work: "runs/peers"})
    for what in a.what:
        document.setdefault(what, {})
        best = Setting()
        if a.pairs:
            document[what]["times"], best = times(peers, what, a.pairs)
            document[what]["times"]["made by"] = made
        if a.seeds:
            document[what]["accuracy"] = accuracy(peers, what, a.seeds, best) | {"made by": made}
        document[what] |= {"job": peers.job(what, 0).model_dump(mode="json", exclude={"start", "teacher", "setting"})}
        if not a.smoke:
            write_json(a.result, document)


if __name__ == "__main__":
    main()
