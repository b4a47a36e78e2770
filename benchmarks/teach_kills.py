"""Kill `rorqual teach` ten times, at random moments of its long stages, and compare what it ends with to a run that was not killed.

    python benchmarks/teach_kills.py BASE --work FOLDER [--case svamp] [--minutes 3] [--kills 10]

BASE is the run of SmolLM2-135M-Instruct, or a GGUF file. CASE names a sample of examples/data. Both runs have one thread. The plans are
copied from the first run, because they are measured. Compared are the bytes of the taught weights, the results on the dev split, every
reply of every model and baseline on the test split, and the report's sentences except the last, which counts the openings of the test
split. The result is docs/results/teach-kills.json. The first run resumes; the second one is repeated from its start.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from record import ROOT, made_by

from rorqual.core.ledger import read_ledger
from rorqual.core.records import write_json
from rorqual.evals.evaluation import Evaluation
from rorqual.teach.paths import TeachPaths

SAMPLES = ROOT / "examples" / "data"
STAGES = {2: "rungs", 3: "base", 4: "train", 6: "test"}
WEIGHTS = (2, 3, 6, 2)
"""The stages in which the command is killed, by their numbers, and how often."""


def start(a: argparse.Namespace, out: Path) -> subprocess.Popen[bytes]:
    """Start the command in its own process group."""
    file, test = (next(SAMPLES.glob(f"{a.case}{end}.*")) for end in ("", "-test"))
    keys = (
        f"test={test}",
        f"base={a.base.absolute()}",
        f"minutes={a.minutes:g}",
        "threads=1",
        f"count={a.count}",
        f"out={out}",
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(out.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "rorqual", "teach", str(file), *keys],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def killed_in(stage: int, wait: float, a: argparse.Namespace, paths: TeachPaths) -> bool:
    """Start the command, and kill it `wait` seconds after it begins the stage or a later one. Return False if it ends before."""
    log = paths.out.with_suffix(".log")
    known = log.stat().st_size if log.exists() else 0
    process = start(a, paths.out)
    begins = re.compile(rf"^[{stage}-7]/7 ".encode(), re.M)
    while process.poll() is None and not begins.search(log.read_bytes()[known:]):
        time.sleep(0.05)
    try:
        code = process.wait(wait)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    if code:
        sys.exit(f"the run failed, see {log}")
    return False


def ending(paths: TeachPaths) -> dict[str, Any]:
    """Return what a finished run ends with."""
    names = json.loads(paths.choice.read_bytes()).values()
    weights = sorted(paths.model.checkpoint().glob("*.safetensors"))
    return {
        "weights": [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights],
        "dev": [json.loads(line) for line in paths.dev.read_text().splitlines()],
        "grpo": json.loads(paths.grpo_result.read_bytes()),
        "replies": {
            name: hashlib.sha256(repr(Evaluation.load(paths.evaluation_file(name)).samples).encode()).hexdigest()
            for name in names
        },
        "sentences": json.loads(paths.results.read_bytes())["sentences"][:-1],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--case", default="svamp")
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--count", type=int, default=40, help="number of test examples")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=ROOT / "docs" / "results" / "teach-kills.json")
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    straight, killed = (TeachPaths(a.work.absolute() / name) for name in ("straight", "killed"))
    if not straight.results.is_file() and start(a, straight.out).wait():
        sys.exit(f"the run failed, see {straight.out.with_suffix('.log')}")
    entries = read_ledger(straight.ledger)
    seconds = sum(one.seconds for one in entries)

    began = time.monotonic()
    shutil.rmtree(killed.out, ignore_errors=True)
    killed.out.mkdir()
    for of in (lambda paths: paths.plan, lambda paths: paths.grpo_plan):
        if of(straight).is_file():
            shutil.copy(of(straight), of(killed))
    rng, kills = random.Random(a.seed), list[dict[str, Any]]()
    lasting = {stage: sum(one.seconds for one in entries if one.stage == name) for stage, name in STAGES.items()}
    stages = sorted(rng.choices([*STAGES], WEIGHTS, k=a.kills))
    for stage in stages:
        # Training goes on where a kill stopped it, so all kills of a stage share 0.6 of its time. A faster machine than before needs the rest.
        wait = rng.uniform(0, 0.6 * lasting[stage] / stages.count(stage))
        if not killed_in(stage, wait, a, killed):
            sys.exit(f"the run ended before kill {len(kills) + 1}; give more --minutes")
        kills.append({"stage": STAGES[stage], "after_seconds": round(wait, 1)})
        print(f"kill {len(kills)}: {wait:.1f} s after the beginning of '{STAGES[stage]}'", flush=True)
    if start(a, killed.out).wait():
        sys.exit(f"the run failed, see {killed.out.with_suffix('.log')}")
    ends = [ending(one) for one in (straight, killed)]
    same = {key: ends[0][key] == ends[1][key] for key in ends[0]}
    result = {
        "made_by": made_by({a.base: "BASE", a.work: "FOLDER"}),
        "straight_seconds": round(seconds),
        "seconds": round(time.monotonic() - began),
        "kills": kills,
        "same": same,
        "ending": ends[0],
    }
    write_json(a.result, result)
    print(f"{len(kills)} kills; the same: {same}")
    return 0 if all(same.values()) and len(kills) == a.kills else 1


if __name__ == "__main__":
    raise SystemExit(main())
