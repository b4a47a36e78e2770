"""The quickstart's stages, in order. A stage is skipped if its output files show that the stage is complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rorqual.core.config import override_fields
from rorqual.core.journal import json_line
from rorqual.core.ledger import Ledger
from rorqual.core.lock import acquire_run_lock
from rorqual.core.progress import Progress, clock_text
from rorqual.core.records import RunDir, Thinking, write_atomic, write_json
from rorqual.data.distilled import read_distilled
from rorqual.engine.engine import Engine
from rorqual.engine.request import SamplingParams
from rorqual.evals.baselines import baseline_accuracies
from rorqual.evals.evaluating import evaluate, pick_problems
from rorqual.factory import FactoryConfig, FilterConfig, sample_teacher
from rorqual.model.account import account
from rorqual.model.config import ModelConfig
from rorqual.recipes.distil import distil
from rorqual.recipes.grpo import grpo
from rorqual.recipes.quickstart.paths import BRANCHES, MODES, WHEN, QuickstartPaths
from rorqual.recipes.quickstart.report import REPORT_FILE, build_report
from rorqual.recipes.quickstart.scale import SCALES, STUDENT_TASK, TASK, QuickstartScale
from rorqual.recipes.quickstart.summary import REPORT_STAGE, build_summary, forward_flops, is_report_current
from rorqual.recipes.sft import sft
from rorqual.tasks.find import load_task
from rorqual.tasks.task import Task, Verdict
from rorqual.train.loop import fit
from rorqual.train.run import Dtype, Run

MODE_LABELS: dict[Thinking, str] = {"auto": "thinking auto", "on": "thinking on", "off": "thinking off"}


def run_quickstart(
    out: Path,
    *,
    seed: int = 0,
    size: Literal["small", "full"] = "full",
    threads: int = 2,
    device: str = "cpu",
    dtype: Dtype = "float32",
    whole_process: bool = False,
) -> Path:
    """Run all stages in the folder `out`, skip completed stages, and return the path of the report.

    With `whole_process`, the ledger also counts the time between the start of the process and the call of
    `run_quickstart`.
    """
    began, place = time.monotonic(), QuickstartPaths(out)
    with acquire_run_lock(out), closing(Ledger(place.ledger, whole_process=whole_process)) as ledger:
        work = Quickstart(place, SCALES[size], seed, threads, device, dtype, ledger)
        work.train_teacher()
        work.train_students()
        report = work.write_report(size)
    print(f"done in {clock_text(time.monotonic() - began)}\n\n  report  {report}")
    print(f"  next    rorqual chat {place.teacher.path}\n          rorqual trace {place.teacher.path}")
    return report


def describe(name: str, model: ModelConfig) -> Iterator[str]:
    """Yield lines of text that describe a model's parameters, cache size and FLOPs."""
    a = account(model, context=model.max_position_embeddings, cache_value_bytes=4)
    mtp = f", MTP {a.mtp:,} more" if a.mtp else ""
    yield f"{name}: {a.total:,} parameters, {a.active:,} active per token ({a.active / a.total:.0%}){mtp}"
    yield f"  {a.cache_bytes:,} cache bytes per token (fp32), {a.flops:,} forward FLOPs per token at {a.context} positions"


@dataclass(frozen=True)
class Quickstart:
    """The stages of the quickstart, and the settings that the stages share."""

    place: QuickstartPaths
    scale: QuickstartScale
    seed: int
    threads: int
    device: str
    dtype: Dtype
    ledger: Ledger

    def train_teacher(self) -> None:
        """Train the teacher on worked solutions, then with GRPO. GRPO rewards correct answers. Evaluate the teacher
        before and after GRPO."""
        s, place = self.scale, self.place
        base = sft(task=TASK, size=s.model, steps=s.sft_steps, rows=s.sft_rows, row=s.row, think=s.think,
                   options={"hard": s.sft_hard, "plain": s.sft_plain}, seed=self.seed)  # fmt: skip
        for line in describe("teacher", base.model):
            print(line)
        print(f"\n1/9 train the teacher: {base.steps} steps on worked solutions of {TASK}")
        self.train("train the teacher", base, place.base)
        run = grpo(task=TASK, start=str(place.base.path), steps=s.grpo_steps, problems=s.grpo_problems, samples=s.grpo_samples,
                   max_tokens=s.max_tokens, row=s.row, lr=s.lr, options={"hard": s.grpo_hard, "plain": s.grpo_plain}, seed=self.seed,
                   dtype=self.dtype)  # fmt: skip
        print(f"\n2/9 reinforce the teacher: {run.steps} steps of GRPO, rewarded for correctness only")
        self.train("reinforce the teacher", run, place.teacher)
        print("\n3/9 evaluate the teacher on held-out problems")
        self.measure_teacher()

    def train_students(self) -> None:
        """Train a base student. From the base student, train three students: by distillation, on the answers only, and
        with GRPO. Evaluate all students and the teacher."""
        s, place = self.scale, self.place
        thinking_student = sft(task=STUDENT_TASK, size=s.student, steps=s.student_able_steps, rows=s.sft_rows, row=s.row,
                   think=s.student_able_think, options={"hard": s.student_hard}, seed=self.seed)  # fmt: skip
        for line in ("", *describe("student", thinking_student.model)):
            print(line)
        print(
            f"\n4/9 train the base student: {thinking_student.steps} steps with thinking on {s.student_able_think:.0%} of problems, then "
            f"{s.student_base_steps} on {s.student_think:.0%}"
        )
        self.train("train the base student", thinking_student, place.run("student-able"))
        base = sft(task=STUDENT_TASK, start=str(place.run("student-able").path), steps=s.student_base_steps, rows=s.sft_rows,
                   row=s.row, think=s.student_think, options={"hard": s.student_hard}, seed=self.seed + 50)  # fmt: skip
        rates = [f"optim.lr={s.student_base_lr}", f"optim.adamw.lr={s.student_base_lr / 3}", "optim.schedule.warmup=5"]
        self.train("train the base student", override_fields(base, rates), place.run("student-base"))
        print(f"\n5/9 sample the teacher on {s.distil_problems} problems of {STUDENT_TASK}")
        self.sample_teacher()
        start = str(place.run("student-base").path)
        run = distil(
            data=str(place.samples_file), start=start, steps=s.distil_steps, rows=s.sft_rows, row=s.row, seed=self.seed
        )
        print(
            f"\n6/9 distil the student: {run.steps} steps on the teacher's samples; train another on the answers only"
        )
        self.train("distil the student", self.with_lower_learning_rates(run), place.run("distilled"))
        run = sft(
            data=str(place.answers_file), start=start, steps=s.distil_steps, rows=s.sft_rows, row=s.row, seed=self.seed
        )
        run = override_fields(self.with_lower_learning_rates(run), ["source.longer=skip"])
        self.train("train on answers alone", run, place.run("answers-only"))
        run = grpo(task=STUDENT_TASK, start=start, steps=s.rival_steps, problems=s.rival_problems, samples=s.rival_samples,
                   max_tokens=s.max_tokens, row=s.row, lr=s.rival_lr, options={"hard": s.student_hard}, seed=self.seed,
                   dtype=self.dtype)  # fmt: skip
        run = override_fields(run, [f"agreement.most={max(run.agreement.most, s.rival_agreement)}"])
        print(f"\n7/9 train another student with GRPO: {run.steps} steps from the same base")
        self.train("reinforce the rival", run, place.run("reinforced"))
        print("\n8/9 evaluate all models on the student's held-out problems")
        self.measure_students()

    def write_report(self, size: str) -> Path:
        """Write the summary and the report, unless the report is up to date."""
        print("\n9/9 report")
        if not is_report_current(self.place):
            facts = build_summary(self.place, self.seed, size)
            with self.ledger.record_stage(REPORT_STAGE):
                write_json(self.place.summary, facts)
                build_report(self.place.out)
        return self.place.out / REPORT_FILE

    def with_lower_learning_rates(self, run: Run) -> Run:
        """Return `run` with lower learning rates, for a model that is already trained."""
        return override_fields(
            run, [f"optim.lr={self.scale.student_lr}", f"optim.adamw.lr={self.scale.student_adamw_lr}"]
        )

    def train(self, stage: str, run: Run, out: RunDir) -> None:
        """Train a run in the folder `out` and record the cost in the ledger. A completed run is not trained again."""
        run = override_fields(run, [f"device={self.device}", f"dtype={self.dtype}"])
        if out.newest_complete_step()[0] == run.steps:
            fit(run, out, threads=self.threads, extend=False)  # raises if the folder belongs to another run
            return
        with self.ledger.record_stage(stage) as entry:
            fit(run, out, threads=self.threads, observe=entry.add, extend=False)

    def sample_teacher(self) -> None:
        """Sample the teacher with thinking on, then verify and filter the samples.

        Also write the problems and the teacher's answers, without the reasoning, to `place.answers_file`.
        """
        s, place = self.scale, self.place
        if place.answers_file.is_file():
            return
        config = FactoryConfig(teacher=str(place.teacher.path), task=STUDENT_TASK, options={"hard": s.student_hard},
                               problems=s.distil_problems, temperature=s.temperature, top_p=s.top_p, max_tokens=s.max_tokens,
                               thinking="on", seed=self.seed, keep=s.distil_keep, device=self.device, dtype=self.dtype,
                               filters=FilterConfig(names=()) if s.distil_keep == "all" else FilterConfig())  # fmt: skip
        with self.ledger.record_stage("sample the teacher") as entry:
            sample_teacher(config, place.samples, threads=self.threads, quiet=False)
            samples = read_distilled(place.samples_file)
            entry.tokens = sum(row.prompt_tokens + row.completion_tokens for row in samples.rows)
            entry.flops = entry.tokens * forward_flops(place.teacher)
            entry.solved = sum(row.verdict == "right" for row in samples.rows)
            lines = [
                # A barely trained teacher may be cut off while thinking; then the reply's only text is its reasoning.
                {"messages": [{"role": m.role, "content": m.text or m.reasoning} for m in row.messages]}
                for row in samples.kept_samples
            ]
            write_atomic(place.answers_file, map(json_line, lines))

    def measure_teacher(self) -> None:
        """Evaluate the teacher before and after GRPO, in all thinking modes."""
        task, place = load_task(TASK, options={"hard": 0.5}), self.place
        for when, run in zip(WHEN, (place.base, place.teacher)):
            paths = [(mode, place.evaluation(f"{when}-{mode}")) for mode in MODES]
            self.evaluate_model("measure the teacher", when, run, task, self.scale.per_cell, paths)

    def measure_students(self) -> None:
        """Evaluate the model of every branch on the same problems."""
        task = load_task(STUDENT_TASK, options={"hard": self.scale.student_hard})
        for branch, modes in BRANCHES.items():
            paths = [(mode, self.place.evaluation_file(branch, mode)) for mode in modes]
            self.evaluate_model(
                "measure the students", branch, self.place.run(branch), task, self.scale.student_per_cell, paths
            )

    def evaluate_model(
        self, stage: str, label: str, run: RunDir, task: Task, count: int, paths: Sequence[tuple[Thinking, Path]]
    ) -> None:
        """Run the missing evaluations of one model, and record the cost of each evaluation in the ledger."""
        wanted = [(mode, path) for mode, path in paths if not path.is_file()]
        if not wanted:
            return
        with self.ledger.record_stage(stage):
            engine, flops_per_token = self.engine(run), forward_flops(run)
            problems = pick_problems(task, "test", count, self.seed, per_family=True)
            measured = baseline_accuracies(task, problems, self.seed)
        for mode, path in wanted:
            with self.ledger.record_stage(stage) as entry:
                evaluation = evaluate(engine, task, count=count, seed=self.seed, thinking=mode, params=self.params(), per_family=True,
                                 progress=evaluation_progress(f"{label}, {MODE_LABELS[mode]}"), model=label, problems=problems,
                                 measured=measured)  # fmt: skip
                entry.tokens = sum(evaluation.usage.values())
                entry.flops = entry.tokens * flops_per_token
                entry.solved = sum(sample.verdict is Verdict.RIGHT for sample in evaluation.samples)
                evaluation.save(path)

    def engine(self, run: RunDir) -> Engine:
        """Return an engine for a run's model."""
        return Engine(run.path, threads=self.threads, device=self.device, dtype=self.dtype)

    def params(self) -> SamplingParams:
        """Return the sampling parameters of all evaluations."""
        s = self.scale
        return SamplingParams(max_tokens=s.max_tokens, temperature=s.temperature, top_p=s.top_p, seed=self.seed)


def evaluation_progress(label: str) -> Callable[[int, int], None]:
    """Return a progress callback for an evaluation that starts now."""
    progress = Progress(f"  {label}", 0, unit="answer")

    def update(done: int, total: int) -> None:
        progress.total = total
        progress.update(done)

    return update
