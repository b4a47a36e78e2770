"""Kill the quickstart at random points, resume it each time, and compare the results with an uninterrupted run.

    python scripts/resume.py --kills 20

Every kill is a SIGKILL of `python -m rorqual quickstart --size small` at a random moment within a stage. The stages take turns, and
every second run is killed twice. The following must be equal, bit for bit: final weights and optimizer states, metrics, stored
rollouts, the teacher's samples, evaluations, the summary and the pictures. Times are ignored. No sample may be lost or paid for
twice. The exit code is 0 if all are equal. The result is written to docs/results/resume.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rorqual.core.journal import read_lines
from rorqual.core.records import RunDir, write_json
from rorqual.data.distilled import read_distilled
from rorqual.train.state import CLOCK_FIELDS

RESULT = Path(__file__).parent.parent / "docs" / "results" / "resume.json"
CLOCKS = {*CLOCK_FIELDS, "began", "ended"}
RUNS = {
    "train": "base",
    "reinforce": "teacher",
    "able": "student-able",
    "student": "student-base",
    "distil": "distilled",
    "answers": "answers-only",
    "rival": "reinforced",
}
"""Each training stage, and the folder of its run."""
OF_A_PLACE = {"of", "teacher"}
"""Fields of a sample that hold the folder's path, which differs between the compared folders."""


Moment = tuple[str, int, float]


def command(out: Path, seed: int) -> list[str]:
    return [sys.executable, "-m", "rorqual", "quickstart", "--size", "small", "--seed", str(seed), "--out", str(out)]


def start(out: Path, seed: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(out, seed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def progress(out: Path) -> dict[str, int]:
    """Return the progress of each stage, in order, from its files: records of runs, samples of the teacher, evaluations."""
    made = {stage: len(list(RunDir(out / folder).metrics())) for stage, folder in RUNS.items()}
    names = [path.name for path in (out / "evals").glob("*.json")] if (out / "evals").is_dir() else []
    ofstudents = sum(name.startswith("student-") for name in names)
    return {
        "train": made["train"],
        "reinforce": made["reinforce"],
        "measure": len(names) - ofstudents,
        "student": made["student"],
        "sample": len(samples_kept(out)) + (out / "answers.jsonl").is_file(),
        "distil": made["distil"],
        "answers": made["answers"],
        "rival": made["rival"],
        "measure students": ofstudents,
    }


def samples_kept(out: Path) -> list[dict[str, Any]]:
    """Return the lines of the distillation journal."""
    return list(read_lines(out / "samples" / "samples.jsonl"))


def without_clock(value: Any) -> Any:
    """Return JSON without time fields."""
    if isinstance(value, dict):
        return {k: without_clock(v) for k, v in value.items() if k not in CLOCKS}
    return [without_clock(v) for v in value] if isinstance(value, list) else value


def results(out: Path) -> dict[str, Any]:
    """Return everything that must be equal, by name."""
    found: dict[str, Any] = {}
    for name in RUNS.values():
        run = RunDir(out / name)
        for file in ("model.safetensors", "optim.safetensors"):
            found[f"{name}/{file}"] = (run.checkpoint() / file).read_bytes()
        found[f"{name}/metrics.jsonl"] = [without_clock(record) for record in run.metrics()]
        if run.rollouts_file.is_file():
            found[f"{name}/rollouts.jsonl"] = run.rollouts_file.read_bytes()
    found |= samples(out)
    for path in sorted((out / "evals").glob("*.json")):
        found[f"evals/{path.name}"] = without_clock(json.loads(path.read_bytes()))
    summary = json.loads((out / "summary.json").read_bytes())
    found["summary.json"] = {
        name: value for name, value in summary.items() if name != "stages"
    }  # repeated work is counted again
    for path in sorted((out / "pictures").iterdir()):
        found[f"pictures/{path.name}"] = path.read_bytes()
    return found


def samples(out: Path) -> dict[str, Any]:
    """Return the distillation results without times, and the number of duplicate samples."""
    rows = read_distilled(out / "samples" / "data.parquet").rows
    journal = samples_kept(out)
    places = [(line["key"], line["number"]) for line in journal]
    return {
        "samples/data.parquet": [
            {k: v.tolist() if hasattr(v, "tolist") else v for k, v in vars(row).items() if k not in CLOCKS | OF_A_PLACE}
            for row in rows
        ],
        "samples/samples.jsonl": [{k: v for k, v in line.items() if k not in CLOCKS | OF_A_PLACE} for line in journal],
        "samples paid for twice": len(places) - len(set(places)),
        "answers.jsonl": (out / "answers.jsonl").read_bytes(),
    }


def straight(out: Path, seed: int) -> float:
    """Run to the end, and return the seconds."""
    began = time.monotonic()
    subprocess.run(command(out, seed), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


def kill_within(out: Path, seed: int, moment: Moment, whole: dict[str, int]) -> dict[str, Any] | None:
    """Kill the run within a stage, as `moment` says. Return its progress, or None if it had already ended."""
    process, (stage, after, delay) = start(out, seed), moment
    order = list(whole)
    before = order[order.index(stage) - 1] if order.index(stage) else None
    while process.poll() is None:
        made = progress(out)
        if made[stage] >= after and (before is None or made[before] >= whole[before]):
            break
        time.sleep(0.01)
    time.sleep(delay)
    if process.poll() is not None:
        return None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return {"stage": stage, "stood_at": progress(out), "seconds_after": round(delay, 3)}


def moments(rng: random.Random, whole: dict[str, int], count: int) -> Iterator[Moment]:
    """Yield (stage, number of its records to wait for, further seconds to wait). The stages take turns; the report comes last."""
    stages, last = [*whole, "report"], list(whole)[-1]
    for number in range(count):
        stage = stages[number % len(stages)]
        if stage == "report":
            yield last, whole[last], rng.random() * 2
        else:
            yield stage, rng.randrange(whole[stage]), rng.random() * 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    rng, kills, failures = random.Random(options.seed), [], 0
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "straight"
        whole = straight(reference, options.seed)
        wanted = results(reference)
        print(f"an uninterrupted run took {whole:.0f} s", flush=True)
        made = progress(reference)
        planned = list(moments(rng, made, options.kills))
        number = 0
        while planned:
            out, times = Path(folder) / f"killed-{number}", 1 + number % 2
            mine, planned = planned[:times], planned[times:]
            died = 0
            for moment in sorted(mine, key=lambda moment: list(made).index(moment[0])):
                where = kill_within(out, options.seed, moment, made)
                if where is None:
                    stage, after, delay = moment
                    planned.append((stage, after, delay / 2))  # it had ended: retry with an earlier kill
                    break
                died += 1
                kills.append({"run": number} | where)
                print(kills[-1], flush=True)
            straight(out, options.seed)
            got = results(out)
            differ = sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name))
            failures += len(differ)
            print(f"run {number}, killed {died} time(s): " + (", ".join(differ) or "all equal"), flush=True)
            number += 1
        write_json(options.out, {
            "command": f"python scripts/resume.py --kills {options.kills} --seed {options.seed}",
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}",
            "compared": sorted(wanted),
            "kills": kills,
            "differences": failures,
            "seconds_of_a_straight_run": round(whole, 1),
        })  # fmt: skip
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
