"""Compare the rungs of `rorqual teach` with their peers on the data sets of `ten_sets.py`: accuracy, core-seconds, memory and bytes.

    python -m venv peers
    echo "$PWD/.venv/lib/python3.11/site-packages" > peers/lib/python3.11/site-packages/shared.pth
    peers/bin/pip install --no-deps setfit==1.2.0 sentence-transformers==6.2.0 fasttext-wheel==0.9.2 pybind11==3.1.0 trl==1.16.0
    python benchmarks/ten_sets.py fetch PACKAGES
    python benchmarks/ladder_peers.py DATA PACKAGES BASE peers/bin/python --keep FOLDER [--sets teams,dates] [--seeds 1,2,3,4,5]
        [--methods minilm,setfit,fasttext,crf,rungs]

DATA and BASE are those of `benchmarks/teach.py`. `rungs` means all rungs of the answers' kind, and `rung: NAME` one of them. lora-writer and
lora-classifier are run only if they are named. A set has 500 training rows, drawn with the seed, and 200 test rows, the same for all seeds.
`rorqual teach` grades all replies. Each run is a process on one core (see peer_methods.py). setfit and LoRA have `--minutes` core-minutes.

The result is docs/results/ladder-peers.json. The command resumes: finished runs are not repeated. Remove the runs of a method from the file
to repeat them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from peer_methods import METHODS, RUNG
from record import ROOT, commit, made_by
from ten_sets import DataSet, data_sets

from rorqual.core.conversations import text_to_turns
from rorqual.core.ledger import Ledger
from rorqual.core.records import write_json
from rorqual.tasks.examples import ExamplesTask
from rorqual.tasks.task import Problem
from rorqual.teach.config import TeachConfig
from rorqual.teach.encoder import MINILM
from rorqual.teach.examples import Example
from rorqual.teach.measure import evaluate_guesses, test_problems
from rorqual.teach.paths import TeachPaths
from rorqual.teach.rungs.rung import Guess
from rorqual.teach.stages import TeachStages
from teach import bits, draw

WORKER = Path(__file__).with_name("peer_methods.py")
RESULT = ROOT / "docs" / "results" / "ladder-peers.json"
COSTS = ("fit_core_seconds", "answer_core_milliseconds", "peak_bytes", "result_bytes", "base_bytes")


@dataclass(frozen=True)
class Division:
    """The rows of a data set and a seed, as `rorqual teach` divides them. `rows` are train, dev and test of a job."""

    kind: str
    rule: str
    rungs: Sequence[str]
    task: ExamplesTask
    problems: Sequence[Problem]
    rows: Mapping[str, list[dict[str, Any]]]


def divide(name: str, seed: int, given: argparse.Namespace, sets: Mapping[str, DataSet]) -> Division:
    """Draw the rows of a seed, and divide them like `rorqual teach`."""
    folder = given.keep / f"{name}-{seed}"
    named = dict(
        key.split("=", 1) for key in draw(name, seed, given.data, folder, {key: one.case for key, one in sets.items()})
    )
    files = {"file": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}
    config = TeachConfig(base=str(given.base), seed=seed, quiet=True, **files, **named)
    paths = TeachPaths(folder / "run")
    with closing(Ledger(paths.ledger)) as ledger:
        stages = TeachStages(config, paths, 1, ledger, lambda *_: None, "")
        stages.check_settings()
        stages.prepare_data()
    data, chat, task = stages.dataset, stages.model.chat, ExamplesTask(paths.data, grader=config.grader)
    problems = test_problems(task)

    def row(prompt: str, answer: str = "") -> dict[str, Any]:
        ids = chat.prompt(text_to_turns(prompt), "off")
        return {
            "prompt": prompt,
            "answer": answer,
            "text": chat.tokenizer.decode(ids, specials=True),
            "ids": ids,
        }

    def rows(examples: Sequence[Example]) -> list[dict[str, Any]]:
        return [row(one.prompt, one.answer) for one in examples]

    return Division(
        data.kind,
        config.rule,
        [*stages.rungs],
        task,
        problems,
        {"train": rows(data.all_train), "dev": rows(data.splits["dev"]), "test": [row(one.prompt) for one in problems]},
    )


def methods_of(text: str, division: Division) -> list[str]:
    """Return the methods of a list that apply to a division. A comma before a space belongs to the name of a rung."""
    found: list[str] = []
    rungs = [RUNG + name for name in division.rungs]
    for method in re.split(",(?! )", text):
        if method == "rungs":
            found += rungs
        elif method in rungs or (method in METHODS and division.kind in METHODS[method][1]):
            found.append(method)
    return found


def run(
    name: str, seed: int, method: str, division: Division, given: argparse.Namespace, places: Mapping[str, str]
) -> dict[str, Any]:
    """Run a method in a process of its own, and return its graded result."""
    folder = given.keep / f"{name}-{seed}"
    job, out = folder / f"job-{method.replace(' ', '-')}.json", folder / "out.json"
    settings = {"method": method, "kind": division.kind, "seed": seed, "minutes": given.minutes, "rule": division.rule}
    encoder = places["folder" if method == "setfit" else "file"]
    write_json(job, settings | {"encoder": encoder, "base": places["base"]} | dict(division.rows))
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    # `-P`: the files beside the worker must not hide packages of the same name
    command = [str(given.python), "-P", str(WORKER), str(job), str(out)]
    with open(folder / "output.txt", "ab") as output:
        subprocess.run(command, check=True, env=environment, stdout=output, stderr=subprocess.STDOUT)
    found = json.loads(out.read_bytes())
    guesses = [Guess(reply, 1.0) for reply in found.pop("replies")]
    right = bits(evaluate_guesses(method, division.task, division.problems, guesses))
    limit = {"minutes": given.minutes} if method in ("setfit", "lora-writer", "lora-classifier") else {}
    about = {"set": name, "seed": seed, "method": method, "commit": commit(ROOT)}
    return about | {"right": right} | limit | found


def summary(runs: Sequence[Mapping[str, Any]], sets: Sequence[str]) -> dict[str, Any]:
    """Return for each set, in the order of `sets`, and each method the accuracy, by seed and on the mean, and the medians of its costs."""
    found: dict[str, Any] = {}
    known = dict.fromkeys((one["set"], one["method"]) for one in runs)
    for name, method in sorted(known, key=lambda pair: sets.index(pair[0])):
        own = [one for one in runs if (one["set"], one["method"]) == (name, method)]
        by_seed = {str(one["seed"]): one["right"].count("1") / len(one["right"]) for one in own}
        spent = {cost: [one[cost] for one in own if one[cost] is not None] for cost in COSTS}
        costs = {cost: median(values) for cost, values in spent.items() if values}
        found.setdefault(name, {})[method] = {"right": fmean(by_seed.values()), "right_by_seed": by_seed, **costs}
    return found


def table(found: Mapping[str, Any]) -> str:
    """Return the mean accuracy of each method on each set, in percent, as a Markdown table."""
    methods = list(dict.fromkeys(method for rows in found.values() for method in rows))
    lines = ["| method | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for method in methods:
        cells = (f"{100 * rows[method]['right']:.1f}" if method in rows else "" for rows in found.values())
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def prepare_places(given: argparse.Namespace) -> dict[str, str]:
    """Return the encoder as a file and as a folder, and the base model in the layout of Hugging Face, which LoRA needs."""
    encoder, folder, base = MINILM.find("encoder"), given.keep / "encoder", given.keep / "base-hf"
    if not folder.is_dir():
        with zipfile.ZipFile(encoder) as packed:
            packed.extractall(folder)
    if not base.is_dir() and "lora" in given.methods:
        subprocess.run([sys.executable, "-m", "rorqual", "export", str(given.base), str(base)], check=True)
    return {"file": str(encoder), "folder": str(folder), "base": str(base)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "packages", "base", "python"):
        parser.add_argument(name, type=lambda text: Path(text).absolute())
    parser.add_argument("--keep", type=lambda text: Path(text).absolute(), required=True, help="folder of the runs")
    parser.add_argument("--sets", default="", help="default: all")
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument(
        "--methods", default="minilm,fasttext,crf,rungs,setfit", help="separated by commas without spaces"
    )
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--result", type=Path, default=RESULT)
    given = parser.parse_args()
    sets = data_sets(given.packages)
    names = given.sets.split(",") if given.sets else list(sets)
    runs = json.loads(given.result.read_bytes())["runs"] if given.result.exists() else []
    made = made_by(
        {
            given.data: "DATA",
            given.packages: "PACKAGES",
            given.base: "BASE",
            given.python: "PYTHON",
            given.keep: "FOLDER",
        }
    )
    about = {name: {"about": one.about, "source": one.source, "licence": one.licence} for name, one in sets.items()}
    given.keep.mkdir(parents=True, exist_ok=True)
    places = prepare_places(given)
    for seed in map(int, given.seeds.split(",")):
        for name in names:
            division = divide(name, seed, given, sets)
            for method in methods_of(given.methods, division):
                if any((one["set"], one["seed"], one["method"]) == (name, seed, method) for one in runs):
                    continue
                runs.append(run(name, seed, method, division, given, places))
                write_json(
                    given.result, {"made by": made, "sets": about, "summary": summary(runs, [*sets]), "runs": runs}
                )
                share = runs[-1]["right"].count("1") / len(division.problems)
                print(name, seed, method, share, runs[-1]["fit_core_seconds"], flush=True)
    print(table(summary(runs, [*sets])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
