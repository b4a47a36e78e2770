"""Run the experiment `answers` on a small pretrained model that was taught the task of docs/how-to/teach.md, and measure a floor on
GSM8K and FOLIO.

    python benchmarks/answers.py orders RUN --out DIR --seeds 100 101 102 103 104   # trains, samples, measures; resumes
    python benchmarks/answers.py conclude RUN --out DIR                             # docs/results/lab/answers-orders.json
    python benchmarks/answers.py floor RUN --data FOLDER --out DIR                  # docs/results/answers-floor.json

RUN is an imported SmolLM2-135M-Instruct. Its chat format has no thinking, so there is no thinking budget. To save time, the only
verifier is the log-probability. The cascade's small model is trained from scratch on the same task. Several processes may do
different seeds at once. FOLDER holds gsm8k/ and folio/.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from record import ROOT, made_by

from rorqual.core.config import override_fields
from rorqual.core.records import write_json
from rorqual.engine import Engine, SamplingParams
from rorqual.evals.evaluating import evaluate
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.votes import rule_results
from rorqual.lab.answers import BIG, LITTLE, AnswersExperiment
from rorqual.lab.job import ExperimentJob, TrainJob
from rorqual.recipes.sft import sft
from rorqual.tasks.find import load_task
from rorqual.train.run import Run

RESULTS = ROOT / "docs" / "results"
LORA = ["tune.kind=lora", "tune.r=16", "tune.alpha=32"]
FLOORS = {"gsm8k": 256, "folio": 96}
"""Tasks of the floor, and the maximum number of tokens of a reply."""
FLOOR_VOTES = 4


class OrdersExperiment(AnswersExperiment):
    """The experiment on orders. `base` is the imported model."""

    name = "answers-orders"
    title = "Computation at the answer: a taught model of 135 million parameters"
    task: ClassVar[str] = f"{ROOT / 'examples' / 'orders.py'}:Orders"
    options: ClassVar[dict[str, Any]] = {}
    count: ClassVar[int] = 15
    max_tokens: ClassVar[int] = 96
    verified: ClassVar[bool] = False
    budgets: ClassVar[tuple[int, ...]] = ()

    def __init__(self, base: Path) -> None:
        super().__init__()
        self.base = base

    def training_jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        def big() -> Run:
            return override_fields(
                sft(task=self.task, start=str(self.base), lr=1e-3, steps=24, rows=4, row=288, seed=seed), LORA
            )

        def little() -> Run:
            return sft(task=self.task, size="student", steps=300, rows=8, row=512, seed=seed)

        return [TrainJob(name=BIG, estimate=245, make=big), TrainJob(name=LITTLE, estimate=40, make=little)]


def floor(run: Path, data: Path, out: Path) -> dict[str, Any]:
    """Return the results of single replies and of votes on 100 problems of each task."""
    found: dict[str, Any] = {}
    for name, most in FLOORS.items():
        for kind, n, temperature in (("greedy", 1, 0.0), ("votes", FLOOR_VOTES, 0.6)):
            file = out / f"floor-{name}-{kind}.json"
            if not file.is_file():
                params = SamplingParams(max_tokens=most, temperature=temperature, n=n)
                task = load_task(name, data=data / name)
                engine = Engine(run, record_experts=False, threads=1)
                evaluate(engine, task, count=100, params=params, votes=n > 1, model=run.name).save(file)
            rows = rule_results(Evaluation.load(file))
            found[f"{name}, {kind}"] = [
                {
                    "rule": row.rule,
                    "samples": row.samples,
                    "accuracy": row.accuracy,
                    "interval": asdict(row.interval),
                    "tokens": row.tokens,
                }
                for row in rows
            ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("orders", "conclude", "floor"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102, 103, 104])
    parser.add_argument("--data", type=Path, default=Path("data"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    made = made_by({given.run: "RUN", given.out: "DIR", given.data: "FOLDER"})
    experiment = OrdersExperiment(given.run)
    places = {seed: given.out / f"seed-{seed}" for seed in given.seeds}
    if given.what == "orders":
        for seed, place in places.items():
            for job in experiment.jobs(seed, place, 1.0):
                cost = job.finish(place)
                print(f"seed {seed}  {job.name:28} {cost.core_seconds:.0f} core-seconds", flush=True)
    elif given.what == "conclude":
        finding = experiment.conclude(places)
        jobs = {job.name: job for job in experiment.jobs(0, given.out, 1.0)}
        costs = {name: tuple(round(job.cost(p).core_seconds, 1) for p in places.values()) for name, job in jobs.items()}
        command = made.pop("command")
        finding = finding.model_copy(update={"costs": costs, "command": command, "made": made})
        write_json(RESULTS / "lab" / "answers-orders.json", finding.model_dump(mode="json"))
        print(f"{finding.verdict}: " + "\n  ".join(finding.words))
    else:
        write_json(RESULTS / "answers-floor.json", made | floor(given.run, given.data, given.out))


if __name__ == "__main__":
    main()
