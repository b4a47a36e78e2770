"""Define the training jobs of `grpo.py` for both sides, and run our side in a process of its own.

python benchmarks/peer.py JOB.json FOLDER
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from record import core_seconds

from rorqual.core.config import Config, override_fields
from rorqual.core.records import RunDir, write_json
from rorqual.data.chat import ChatFormat, chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Engine, SamplingParams
from rorqual.evals.evaluating import evaluate
from rorqual.evals.evaluation import Evaluation
from rorqual.model import Decoder
from rorqual.recipes.distil import on_policy
from rorqual.recipes.grpo import grpo
from rorqual.tasks.find import load_task, safe_grade
from rorqual.tasks.task import Problem, Verdict
from rorqual.train.loop import fit
from rorqual.train.run import Run
from rorqual.train.sources.worked import endless_problems

ROW = 128
EVAL_SEED = 1_000


class Setting(Config):
    """TRL's configuration, by the names of its arguments.

    `parts` is the number of gradient accumulation steps. `threads` is the number of torch threads in each of `processes`.
    """

    attention: Literal["sdpa", "eager"] = "sdpa"
    cache: Literal["dynamic", "static", "paged"] = "dynamic"
    bf16: bool = False
    parts: int = 1
    optim: Literal["fused", "foreach"] = "fused"
    compiled: bool = False
    threads: int = 1
    processes: int = 1

    def __str__(self) -> str:
        words = ["bf16" if self.bf16 else "fp32", self.attention, f"{self.cache} cache", f"{self.optim} AdamW"]
        words += [f"update in {self.parts} batches"] * (self.parts > 1) + ["torch_compile"] * self.compiled
        words += [f"{self.processes} processes"] * (self.processes > 1)
        return ", ".join([*words, f"{self.threads} thread" + "s" * (self.threads > 1)])


class Job(Config):
    """The job of both sides. `start` is the run directory of the initial student, `teacher` that of the teacher for `distil`.

    The `updates` of a step share its samples. `per_cell` is the number of problems per family and level in the final evaluation,
    or 0 for no evaluation.
    """

    what: Literal["grpo", "distil"]
    start: str
    teacher: str = ""
    task: str
    hard: float
    steps: int
    problems: int
    samples: int
    updates: int
    max_tokens: int
    lr: float
    seed: int
    threads: int
    per_cell: int = 0
    setting: Setting = Setting()

    def run(self) -> Run:
        """Return our run from the recipe, with this job's number of updates per step."""
        given: dict[str, Any] = {
            "task": self.task, "start": self.start, "steps": self.steps, "problems": self.problems,
            "samples": self.samples, "max_tokens": self.max_tokens, "row": ROW, "lr": self.lr,
            "options": {"hard": self.hard}, "seed": self.seed,
        }  # fmt: skip
        made = grpo(**given) if self.what == "grpo" else on_policy(teacher=self.teacher, **given)
        return override_fields(made, [f"source.minibatches={self.updates}"])


class Outcome(Config):
    """The cost of one side's training. `warm_seconds` and `warm_core_seconds` exclude the first step.

    Loading, export and evaluation are not included. `tokens` is the total of sampled tokens.
    """

    who: str
    seconds: float
    warm_seconds: float
    warm_core_seconds: float
    tokens: int
    peak_mib: float
    rewards: list[float]
    versions: dict[str, str] = {}


def problems_of(job: Job) -> list[Problem]:
    """Return all problems of the run, step by step, in the order of our rollouts."""
    task = load_task(job.task, options={"hard": job.hard})
    seed = job.run().seed
    return [
        p for step in range(job.steps) for p in islice(endless_problems(task, seed * 1_000_003 + step), job.problems)
    ]


def format_of(run: RunDir) -> ChatFormat:
    return chat_format(Tokenizer.load(run.tokenizer_file))


def judge(model: Decoder, chat: ChatFormat, job: Job, out: Path, label: str) -> Evaluation:
    """Evaluate on held-out problems with the sampling of training: temperature 1, and the model chooses whether to think."""
    params = SamplingParams(max_tokens=job.max_tokens, temperature=1.0, seed=job.seed, n=4)
    found = evaluate(
        Engine.of(model, chat.tokenizer, chat, threads=job.threads),
        load_task(job.task, options={"hard": job.hard}),
        count=job.per_cell,
        seed=EVAL_SEED + job.seed,
        params=params,
        per_family=True,
        model=label,
    )
    found.save(out / "evaluation.json")
    return found


def ours(job: Job, out: Path) -> Outcome:
    """Run our complete loop, with the sampler check, metrics and checkpoints."""
    began = time.perf_counter()
    ends: list[tuple[float, float]] = []  # wall-clock and core-seconds at the end of each step, as for TRL

    def note(record: Mapping[str, Any]) -> None:
        ends.append((time.perf_counter(), core_seconds()))

    state = fit(job.run(), RunDir(out / "run"), threads=job.threads, quiet=True, observe=note)
    ended, spent = time.perf_counter(), core_seconds()
    records = list(RunDir(out / "run").metrics())
    outcome = Outcome(
        who="rorqual",
        seconds=ended - began,
        warm_seconds=ended - ends[0][0],
        warm_core_seconds=spent - ends[0][1],
        tokens=sum(record["sampled_tokens"] for record in records),
        peak_mib=peak_mib(),
        rewards=[record["reward"] for record in records],
    )
    if job.per_cell:
        judge(state.model, format_of(RunDir(Path(job.start))), job, out, "rorqual")
    return outcome


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def finish(outcome: Outcome, out: Path) -> None:
    """Write the outcome last, so that an existing file is complete."""
    write_json(out / "outcome.json", outcome.model_dump(mode="json"))


def text_of(chat: ChatFormat, problem: Problem) -> str:
    """Return the prompt as text, with special tokens by name."""
    return chat.tokenizer.decode(chat.prompt(problem.messages), specials=True)


def verdicts(chat: ChatFormat, job: Job, problems: Sequence[Problem], replies: Sequence[Sequence[int]]) -> list[Any]:
    """Return rewards as in our rollouts: 1 for right, 0 for wrong or truncated, None for ungraded."""
    task = load_task(job.task, options={"hard": job.hard})
    found: list[Any] = []
    for problem, ids in zip(problems, replies, strict=True):
        whole = bool(ids) and ids[-1] in chat.stop_ids
        verdict = safe_grade(task, problem, chat.parse(ids).content) if whole else Verdict.WRONG
        found.append(None if verdict is Verdict.UNGRADED else float(verdict is Verdict.RIGHT))
    return found


def main() -> None:
    job, out = Job.model_validate_json(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
    finish(ours(job, out), out)


if __name__ == "__main__":
    main()
