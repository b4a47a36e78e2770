"""Train the model: LoRA on the examples, keeping the checkpoint that is best on the dev split, then GRPO if it can help."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from statistics import fmean
from typing import Any

from rorqual.core.errors import NumericsError
from rorqual.core.journal import append_line, read_lines
from rorqual.core.progress import Progress
from rorqual.core.records import RunDir, Thinking, stored_json, write_json
from rorqual.data.chat import ChatFormat
from rorqual.engine.engine import Engine
from rorqual.engine.request import SamplingParams
from rorqual.evals.evaluating import evaluate
from rorqual.evals.evaluation import GradedSample
from rorqual.model.adapter import LoRA
from rorqual.recipes.grpo import grpo
from rorqual.tasks.task import Problem, Task, Verdict
from rorqual.teach.config import TeachConfig
from rorqual.teach.held_out import HeldOut, clearly_beats
from rorqual.teach.paths import TeachPaths
from rorqual.teach.plan import ALPHA, OVERTIME, SLACK, R, TeachPlan, sft_run
from rorqual.train.loop import fit
from rorqual.train.run import Run

MOST_DEV = 100
DEV_SECONDS, DEV_FIRST = 60.0, 16
"""The first measurement on the dev split may take about `DEV_SECONDS` seconds. The time of this measurement is estimated from
the first `DEV_FIRST` problems. Later measurements use the problems of the first measurement."""
GATE_PROBLEMS, GATE_SAMPLES = 16, 8
"""Before GRPO, `GATE_SAMPLES` answers to each of `GATE_PROBLEMS` training problems are sampled. GRPO runs only if some problem
has both right and wrong answers."""
GRPO_PROBLEMS, GRPO_SAMPLES, GRPO_LR = 8, 8, 3e-4
FEWEST_GRPO, MOST_GRPO = 8, 40
"""GRPO has at most `MOST_GRPO` steps, and is skipped if there is time for fewer than `FEWEST_GRPO` steps."""


@dataclass(frozen=True)
class DevResult:
    """A checkpoint's result on the dev split. `bits` has a digit for each problem: 1 if the answer is right, else 0."""

    run: str
    step: int
    bits: str

    @property
    def right(self) -> int:
        """The number of right answers."""
        return self.bits.count("1")

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.right / len(self.bits)

    def held_out(self) -> HeldOut:
        """Return the result as that of a rung whose examples are named by their numbers."""
        return HeldOut(self.run, {str(place): bit == "1" for place, bit in enumerate(self.bits)}, {}, 0.0, 0.0)


@dataclass(frozen=True)
class GRPOResult:
    """The result of the GRPO stage: whether the model that GRPO trained is used, and a sentence about the GRPO stage."""

    used: bool
    text: str


@dataclass(frozen=True)
class TeachTraining:
    """The training of a model, and its measurement on the dev split. `params` are the sampling parameters of replies, `no_grpo` says why
    no time is planned for GRPO, and `say` prints a line."""

    config: TeachConfig
    paths: TeachPaths
    plan: TeachPlan
    task: Task
    params: SamplingParams
    thinking: Thinking
    chat: ChatFormat
    no_grpo: str
    threads: int
    say: Callable[[str], None]

    @cached_property
    def dev_problems(self) -> Sequence[Problem]:
        """The problems of the dev split, at most `MOST_DEV`."""
        return list(islice(self.task.problems("dev", 0), MOST_DEV))

    # ---- supervised fine-tuning

    def train_supervised(self, base: RunDir, track: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Fine-tune `base` on the examples, and keep the checkpoint that is best on the
        dev split. Of equally good checkpoints, the latest checkpoint is kept.

        `track` is called with the metrics record of each training step.
        """
        out = self.paths.sft
        run = sft_run(base, self.paths.sft_rows, self.plan, seed=self.config.seed)
        for step in self.plan.dev_steps:
            done = {result.step for result in self.dev_results("sft")}
            if step in done or self.paths.ended_early.exists():
                continue
            reached = self._train_to_step(run, out, step, self.plan.train_seconds, track)
            if reached not in done:
                result = self.measure_on_dev(out, "sft", reached)
                if result.accuracy >= max((one.accuracy for one in self.dev_results("sft")), default=0.0):
                    copy_run(out, self.paths.best)
                append_line(self.paths.dev, vars(result))  # after the copy: a killed process measures and copies again
                self.say(f"  step {reached}: {result.right} of {len(result.bits)} right on dev")
            if reached < step:
                write_json(self.paths.ended_early, {"step": reached, "of": run.steps})
                self.say(f"  ended after {reached} of {run.steps} steps, because training took too long")

    def _train_to_step(
        self,
        run: Run,
        out: RunDir,
        step: int,
        planned: float,
        track: Callable[[dict[str, Any]], None] | None = None,
    ) -> int:
        """Train up to `step`, or until training has taken too long compared with `planned` seconds (see `OVERTIME`). Return the
        number of the last training step."""
        spent = sum(float(record["seconds"]) for record in out.metrics())
        most = max(OVERTIME * planned, planned + SLACK)
        reached = out.newest_complete_step()[0] or 0
        if reached >= step or (reached and spent > most):
            return reached

        bar = None if self.config.quiet else Progress(run.recipe, run.steps, start=reached)

        def observe(record: dict[str, Any]) -> None:
            nonlocal spent
            spent += record["seconds"]
            if track is not None:
                track(record)
            if bar is not None:
                bar.update(record["step"], f"loss {record['loss']:.3g}")

        def stop(finished: int) -> bool:
            nonlocal reached
            reached = finished
            return finished >= step or spent > most

        fit(run, out, threads=self.threads, quiet=True, observe=observe, stop=stop)
        return reached

    # ---- the dev split

    def dev_results(self, run: str) -> list[DevResult]:
        """Return all results so far of the run named `run` on the dev split."""
        return [one for line in read_lines(self.paths.dev) if (one := DevResult(**line)).run == run]

    def measure_on_dev(self, run: RunDir, name: str, step: int) -> DevResult:
        """Measure a run on the dev problems, or on as many dev problems as the first measurement had time for."""
        engine = engine_of(run, self.threads)

        def bits(problems: Sequence[Problem]) -> str:
            answers = {one.key: one for one in self._answers(engine, problems, self.params)}
            return "".join(str(int(answers[one.key].verdict is Verdict.RIGHT)) for one in problems)

        first = next(iter(read_lines(self.paths.dev)), None)
        if first is not None:
            return DevResult(name, step, bits(self.dev_problems[: len(first["bits"])]))
        began = time.monotonic()
        found = bits(self.dev_problems[:DEV_FIRST])
        seconds = time.monotonic() - began
        total = min(len(self.dev_problems), DEV_FIRST + int(DEV_FIRST * max(0.0, DEV_SECONDS - seconds) / seconds))
        if total > DEV_FIRST:
            found += bits(self.dev_problems[DEV_FIRST:total])
        if total < len(self.dev_problems):
            self.say(f"  dev is measured on {total} of {len(self.dev_problems)} problems, because replies take long")
        return DevResult(name, step, found)

    def _answers(self, engine: Engine, problems: Sequence[Problem], params: SamplingParams) -> Sequence[GradedSample]:
        """Return graded replies to `problems`."""
        return evaluate(
            engine, self.task, problems=problems, params=params, thinking=self.thinking, measured={}
        ).samples

    # ---- reinforcement learning

    def train_grpo(self) -> GRPOResult:
        """Train the best checkpoint with GRPO if its sampled answers to some training problem are partly right, and if there is
        time."""
        return GRPOResult(**stored_json(self.paths.grpo_result, self._grpo_result))

    def _grpo_result(self) -> dict[str, Any]:
        """Train with GRPO unless it is skipped. Run and reason depend on measured time, so they are computed once and stored."""
        plan = stored_json(self.paths.grpo_plan, self._grpo_plan)
        return vars(
            self._run_grpo(Run(**plan["run"]), plan["text"]) if plan["run"] else GRPOResult(False, plan["text"])
        )

    def _run_grpo(self, run: Run, reason: str) -> GRPOResult:
        """Train with GRPO, and compare the trained model with the best checkpoint on the dev split."""
        self.say(f"  {reason}")
        try:
            reached = self._train_to_step(run, self.paths.grpo, run.steps, self.plan.grpo_seconds)
        except NumericsError as error:
            return GRPOResult(used=False, text=f"GRPO was stopped, and its model is not used: {error.what}")
        if not self.dev_results("grpo"):
            append_line(self.paths.dev, vars(self.measure_on_dev(self.paths.grpo, "grpo", reached)))
        [after] = self.dev_results("grpo")
        before = max(reversed(self.dev_results("sft")), key=lambda one: one.accuracy)
        used = clearly_beats(after.held_out(), before.held_out())
        text = f"{reached} of {run.steps} steps of GRPO changed the accuracy on dev from {before.accuracy:.0%} to {after.accuracy:.0%}"
        return GRPOResult(used, f"{text}, so its model {'is' if used else 'is not'} used (one standard error decides)")

    def _grpo_plan(self) -> dict[str, Any]:
        run, reason = self._decide_on_grpo()
        return {"run": run and run.model_dump(mode="json"), "text": reason}

    def _decide_on_grpo(self) -> tuple[Run | None, str]:
        """Return the GRPO run, or None if GRPO is skipped, and the reason for skipping. Whether GRPO is skipped depends on
        sampled answers to training problems (see `GATE_PROBLEMS`)."""
        if not self.plan.grpo_seconds:
            return None, self.no_grpo or "GRPO is skipped: no time is left for it"
        began = time.monotonic()
        problems = list(islice(self.task.problems("train", self.config.seed), GATE_PROBLEMS))
        params = replace(self.params, n=GATE_SAMPLES, temperature=1.0, seed=self.config.seed)
        samples = self._answers(engine_of(self.paths.best, self.threads), problems, params)
        seconds = time.monotonic() - began
        rights = Counter(one.key for one in samples if one.verdict is Verdict.RIGHT)
        mixed = sum(0 < rights[problem.key] < GATE_SAMPLES for problem in problems)
        tried = f"{len(problems)} training problems, {GATE_SAMPLES} tries each"
        if not mixed:
            return (
                None,
                f"GRPO is skipped: of {tried}, the model solved {len(rights)} in every try and the others never",
            )
        mean = fmean(self._prompt_length(problem) for problem in problems) + fmean(one.tokens for one in samples)
        tokens = GRPO_PROBLEMS * GRPO_SAMPLES * mean
        per_token = self.plan.step_seconds / (self.plan.rows * self.plan.row)
        estimate = seconds * GRPO_PROBLEMS / GATE_PROBLEMS + tokens * per_token * (1 / 3 + mixed / len(problems))
        steps = min(int(self.plan.grpo_seconds / estimate), MOST_GRPO)
        if steps < FEWEST_GRPO:
            return (
                None,
                f"GRPO is skipped: there is time for {steps} steps of {estimate:.0f} seconds, and {FEWEST_GRPO} are the fewest",
            )
        longest = max(self._prompt_length(problem) for problem in self.task.problems("train", self.config.seed))
        run = grpo(
            task="examples",
            data=str(self.paths.data),
            options={"grader": self.config.grader} if self.config.grader else {},
            start=str(self.paths.best.path),
            steps=steps,
            problems=GRPO_PROBLEMS,
            samples=GRPO_SAMPLES,
            max_tokens=self.params.max_tokens,
            row=2 * (longest + self.params.max_tokens),
            lr=GRPO_LR,
            thinking=self.thinking,
            seed=self.config.seed,
            dtype=self.plan.dtype,
        )
        source = run.source.model_copy(update={"calculator": self.params.calculator})
        run = run.model_copy(update={"tune": LoRA(r=R, alpha=ALPHA), "micro_batches": 16, "source": source})
        return (
            run,
            f"GRPO, {steps} steps: of {tried}, the model solved {len(rights)} at least once and {mixed} not always",
        )

    def _prompt_length(self, problem: Problem) -> int:
        return len(self.chat.prompt(problem.messages, self.thinking))


def engine_of(run: RunDir, threads: int) -> Engine:
    """Return an engine with the model of a run, for evaluation."""
    return Engine(run.path, threads=threads, engine_cores=max(1, threads), record_experts=False, backend="torch")


def copy_run(src: RunDir, dst: RunDir) -> None:
    """Replace `dst` by a copy of a run's settings, tokenizer and newest checkpoint."""
    step = src.checkpoint()
    temporary = dst.path.with_name(f".{dst.path.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for file in (src.config_file, src.tokenizer_file):
        shutil.copy2(file, temporary / file.name)
    shutil.copytree(step, temporary / step.name)
    shutil.rmtree(dst.path, ignore_errors=True)
    os.replace(temporary, dst.path)
