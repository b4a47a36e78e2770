"""Forecast the quickstart's cost on this machine. The recipes give the amount of work of each stage, and a short benchmark
gives the speed.

The recipes and tasks determine the numbers of steps, problems and tokens. Seconds per step and per answer are measured
on untrained models with the shapes of the quickstart's models. Answers are assumed to be as long as the solutions that
the model is trained on. The benchmark generates samples that are as long as the training solutions.

Two numbers are unknown in advance: how often a model thinks after GRPO, and how many groups of samples give a gradient. The
constant `GOES_OVER` estimates the effect of GRPO on thinking. The constant `TEACHES` estimates the share of samples in
groups that give a gradient. The forecast does not include the report and the start of the Python process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from rorqual.core.records import Message, RunDir
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.engine import Engine
from rorqual.engine.request import Request, SamplingParams
from rorqual.evals.evaluating import pick_problems
from rorqual.factory import FactoryConfig, FilterConfig, sample_teacher
from rorqual.recipes.quickstart.paths import BRANCHES, MODES, WHEN
from rorqual.recipes.quickstart.scale import STUDENT_TASK, TASK, QuickstartScale
from rorqual.recipes.sft import sft
from rorqual.recipes.start import finetune_optim
from rorqual.tasks.find import load_task
from rorqual.tasks.task import Problem
from rorqual.train.loop import fit
from rorqual.train.run import Run
from rorqual.train.state import State

GOES_OVER = 2 / 3
"""Estimated effect of GRPO on the fraction of thinking replies, averaged over the training. An effect of 0 leaves this fraction
at its initial value, and an effect of 1 raises the fraction to 100 %."""
TEACHES = 0.8
"""Share of samples that are in groups with both correct and wrong answers.

In the quickstart with seed 0, the measured value of `TEACHES` was 0.94 for the teacher and 0.64 for the student trained
with GRPO. The measured value of `GOES_OVER` was 0.38 for the teacher and 0.71 for the student. The constants `TEACHES`
and `GOES_OVER` lie between the measured values of teacher and student. With other seeds, the measured values may differ.
"""
WARM, STEPS, BATCH = 2, 8, 64
DRAWN = 384
FACTORY = (2, 8, 520)
"""Numbers of samples that the data factory generates in its three probe runs. The first probe run is a warm-up. The cost per
sample follows from the difference between the second and the third probe run."""


@dataclass(frozen=True)
class TokenLengths:
    """Token counts of a prompt, of the reply with thinking, and of the reply without thinking (`at_once`). The token counts may
    be means over problems."""

    prompt: float
    thinking: float
    at_once: float

    def mean_reply_length(self, share: float) -> float:
        """Return the mean reply length if the model thinks on `share` of the problems."""
        return share * self.thinking + (1 - share) * self.at_once


Solution = tuple[Problem, TokenLengths]
"""A problem, and the lengths of its prompt and of its worked solution."""


@dataclass(frozen=True)
class ShapeCost:
    """Measured costs of a model shape, in core-seconds.

    `step` is the cost of a fine-tuning step of `tokens` tokens. `update` is the cost per token of a GRPO update.
    `rollout` is the cost of one rollout. `on` and `off` are the costs of an answer in an evaluation, with and without
    thinking. `cores` is the mean number of busy CPU cores.
    """

    step: float
    tokens: float
    update: float
    rollout: float
    on: float
    off: float
    cores: float

    def mean_answer_cost(self, share: float) -> float:
        """Return the mean cost of an answer if the model thinks on `share` of the problems."""
        return share * self.on + (1 - share) * self.off


@dataclass(frozen=True)
class EvaluationSet:
    """The problems of an evaluation: their number, their mean lengths, and the core-seconds (`drawing`) to generate the
    problems. The evaluation of each model generates the problems again."""

    problems: int
    lengths: TokenLengths
    drawing: float


@dataclass(frozen=True)
class StageForecast:
    """The forecast of one stage. `name` is the stage's name in the cost ledger."""

    name: str
    core_seconds: float
    tokens: float
    cores: float

    @property
    def seconds(self) -> float:
        """The forecast of the stage's wall-clock seconds."""
        return self.core_seconds / self.cores


def forecast(scale: QuickstartScale, *, seed: int = 0, threads: int = 2) -> list[StageForecast]:
    """Measure the speed of teacher and student, and forecast the cost of each stage. For the full-size quickstart,
    these measurements take about twenty core-seconds."""
    teacher_run = sft(task=TASK, size=scale.model, think=scale.think, options={"hard": scale.sft_hard, "plain": scale.sft_plain},
                      rows=scale.sft_rows, row=scale.row, seed=seed)  # fmt: skip
    student_run = sft(task=STUDENT_TASK, size=scale.student, think=scale.student_able_think, options={"hard": scale.student_hard},
                      rows=scale.sft_rows, row=scale.row, seed=seed)  # fmt: skip
    teaching, studying = (
        draw_solutions(TASK, {"hard": scale.grpo_hard, "plain": scale.grpo_plain}, seed),
        draw_solutions(STUDENT_TASK, {"hard": scale.student_hard}, seed),
    )
    teacher = measure_shape_cost(teacher_run, teaching, thinking_share_after_grpo(scale.think), scale, threads)
    student = measure_shape_cost(student_run, studying, thinking_share_after_grpo(scale.student_think), scale, threads)
    wide, narrow = (
        make_evaluation_set(TASK, 0.5, scale.per_cell, seed),
        make_evaluation_set(STUDENT_TASK, scale.student_hard, scale.student_per_cell, seed),
    )
    factory = measure_factory_cost(teacher_run, scale, mean_lengths(studying), threads)
    return stage_forecasts(
        scale, teacher, student, mean_lengths(teaching), mean_lengths(studying), wide, narrow, factory
    )


def stage_forecasts(
    s: QuickstartScale,
    teacher: ShapeCost,
    student: ShapeCost,
    teaching: TokenLengths,
    studying: TokenLengths,
    wide: EvaluationSet,
    narrow: EvaluationSet,
    factory: tuple[float, float],
) -> list[StageForecast]:
    """Return the forecast of each stage: the amount of work, multiplied by the measured costs.

    `wide` has problems of the teacher's task, and `narrow` has problems of the student's task. `factory` is the result of
    `measure_factory_cost`.
    """
    habits = {"before": s.think, "after": thinking_share_after_grpo(s.think, 1.0)}
    first = [thinking_share_in_mode(mode, habits[when]) for when in WHEN for mode in MODES]
    able = s.student_able_steps + s.student_base_steps
    base = StageForecast("train the base student", able * student.step, able * student.tokens, student.cores)
    further = (s.distil_steps * student.step, s.distil_steps * student.tokens, student.cores)
    prompts = s.distil_problems * (studying.prompt + studying.thinking)
    return [
        StageForecast("train the teacher", s.sft_steps * teacher.step, s.sft_steps * teacher.tokens, teacher.cores),
        forecast_grpo("reinforce the teacher", s.grpo_steps, s.grpo_problems * s.grpo_samples, teacher, teaching, s.think),
        forecast_evaluation("measure the teacher", [(teacher, first, len(WHEN))], wide),
        base,
        StageForecast("sample the teacher", factory[0] + s.distil_problems * factory[1], prompts, teacher.cores),
        StageForecast("distil the student", *further),
        StageForecast("train on answers alone", *further),
        forecast_grpo("reinforce the rival", s.rival_steps, s.rival_problems * s.rival_samples, student, studying, s.student_think),
        forecast_evaluation("measure the students", branch_evaluation_costs(s, teacher, student), narrow),
    ]  # fmt: skip


def branch_evaluation_costs(
    s: QuickstartScale, teacher: ShapeCost, student: ShapeCost
) -> list[tuple[ShapeCost, list[float], int]]:
    """Return one tuple for each branch: the costs of the branch's model, the fractions of thinking replies in the branch's
    evaluations, and the number of models (1)."""
    habits = {"teacher": thinking_share_after_grpo(s.think, 1.0), "student-base": s.student_think, "answers-only": 0.0}
    return [
        (
            teacher if name == "teacher" else student,
            [thinking_share_in_mode(mode, habits.get(name, 1.0)) for mode in modes],
            1,
        )
        for name, modes in BRANCHES.items()
    ]


def forecast_evaluation(
    name: str, models: Sequence[tuple[ShapeCost, list[float], int]], exam: EvaluationSet
) -> StageForecast:
    """Return the forecast of an evaluation stage. An evaluation stage generates the problems and each model's answers."""
    core = sum(exam.problems * pace.mean_answer_cost(share) for pace, shares, _ in models for share in shares)
    tokens = sum(
        exam.problems * (exam.lengths.prompt + exam.lengths.mean_reply_length(share))
        for _, shares, _ in models
        for share in shares
    )
    drawing = exam.drawing * sum(count for _, _, count in models)
    return StageForecast(name, core + drawing, tokens, models[-1][0].cores)


def forecast_grpo(
    name: str, steps: int, samples: int, pace: ShapeCost, lengths: TokenLengths, share: float
) -> StageForecast:
    """Return the forecast of a GRPO stage. Each step generates samples, recomputes their log-probabilities with one
    forward pass, and trains on the groups that give a gradient."""
    reply = lengths.mean_reply_length(thinking_share_after_grpo(share))
    seen = samples * (lengths.prompt + reply)
    cost = samples * pace.rollout + seen * pace.update * (1 / 3 + TEACHES)
    return StageForecast(name, steps * cost, steps * (samples * reply + seen * TEACHES), pace.cores)


def thinking_share_in_mode(mode: str, habit: float) -> float:
    """Return the share of thinking replies in the thinking mode `mode`. `habit` is the share in the mode `auto`."""
    return {"on": 1.0, "off": 0.0}.get(mode, habit)


def thinking_share_after_grpo(share: float, goes: float = GOES_OVER) -> float:
    """Return the share of thinking replies after GRPO. GRPO closes the fraction `goes` of the gap between `share` and 1."""
    return share + (1 - share) * goes


def draw_solutions(task: str, options: dict[str, float], seed: int) -> list[Solution]:
    """Return the first `DRAWN` problems of the task's train split, each with the token counts of its prompt and solution."""
    return count_solution_tokens(list(islice(load_task(task, options=options).problems("train", seed), DRAWN)))


def count_solution_tokens(problems: Sequence[Problem]) -> list[Solution]:
    """Return each problem with the token counts of its prompt and solution in the quickstart's chat format."""
    chat = chat_format(Tokenizer.byte_level())
    lengths = []
    for problem in problems:
        long, short = (
            chat.render((*problem.messages, Message("assistant", problem.answer, steps))).mask
            for steps in (problem.steps, None)
        )
        lengths.append((problem, TokenLengths(len(long) - sum(long), sum(long), sum(short))))
    return lengths


def mean_lengths(solutions: Sequence[Solution]) -> TokenLengths:
    """Return the mean lengths of `solutions`."""
    return TokenLengths(*map(fmean, zip(*(astuple(lengths) for _, lengths in solutions), strict=True)))


def make_evaluation_set(task: str, hard: float, count: int, seed: int) -> EvaluationSet:
    """Generate the problems of an evaluation, and measure the core-seconds of the generation."""
    began = time.process_time()
    problems = pick_problems(load_task(task, options={"hard": hard}), "test", count, seed, per_family=True)
    drawing = time.process_time() - began
    return EvaluationSet(
        len(problems), mean_lengths(count_solution_tokens(problems[:: max(1, len(problems) // DRAWN)])), drawing
    )


def measure_shape_cost(
    run: Run, solutions: Sequence[Solution], share: float, scale: QuickstartScale, threads: int
) -> ShapeCost:
    """Measure the costs of a model shape by running a few fine-tuning steps, GRPO-like updates, rollouts and answers."""
    state, step, wall, tokens = time_few_steps(run, threads)
    adam = run.model_copy(
        update={"optim": finetune_optim(1e-4), "source": run.source.model_copy(update={"rows": BATCH})}
    )
    _, update, _, learned = time_few_steps(adam, threads)
    rollout_params = SamplingParams(n=scale.grpo_samples, temperature=1.0, ignore_eos=True)
    eval_params = SamplingParams(temperature=scale.temperature, top_p=scale.top_p, ignore_eos=True)
    rollout_problems = solutions[: scale.grpo_problems]
    return ShapeCost(
        step=step,
        tokens=tokens,
        update=update / learned,
        rollout=measure_sampling_cost(state, rollout_problems, share, rollout_params, threads),
        on=measure_sampling_cost(state, solutions, 1.0, eval_params, threads),
        off=measure_sampling_cost(state, solutions, 0.0, eval_params, threads),
        cores=step / wall,
    )


def time_few_steps(run: Run, threads: int) -> tuple[State, float, float, float]:
    """Train a few steps. Return the trained state, and the core-seconds, seconds and tokens per step after the
    warm-up."""
    records: list[dict[str, float]] = []
    with TemporaryDirectory() as folder:
        short = run.model_copy(update={"steps": WARM + STEPS})
        state = fit(short, RunDir(Path(folder) / "probe"), threads=threads, quiet=True, observe=records.append)
    measured_steps = records[WARM:]
    core, wall, tokens = (
        fmean(record[name] for record in measured_steps) for name in ("core_seconds", "seconds", "tokens")
    )
    return state, core, wall, tokens


def measure_factory_cost(run: Run, scale: QuickstartScale, lengths: TokenLengths, threads: int) -> tuple[float, float]:
    """Return the data factory's costs in core-seconds: a fixed cost for the dataset card, and the cost per verified and saved
    sample."""
    spent = []
    # An untrained model samples all tokens with about equal probability, including the EOS token. Choose max_tokens so
    # that the mean length is `lengths.thinking`.
    vocab = run.model.vocab_size
    room = round(math.log1p(-lengths.thinking / vocab) / math.log1p(-1 / vocab))
    with TemporaryDirectory() as folder:
        teacher = RunDir(Path(folder) / "teacher")
        fit(run.model_copy(update={"steps": 1}), teacher, threads=threads, quiet=True)
        for count in FACTORY:
            config = FactoryConfig(teacher=str(teacher.path), task=STUDENT_TASK, options={"hard": scale.student_hard}, problems=count,
                                   temperature=scale.temperature, top_p=scale.top_p, max_tokens=room, thinking="on",
                                   keep="all", filters=FilterConfig(names=()) if scale.distil_keep == "all" else FilterConfig())  # fmt: skip
            began = time.process_time()
            sample_teacher(config, Path(folder) / str(count), threads=threads, quiet=True)
            spent.append(time.process_time() - began)
    per_sample = max(0.0, spent[2] - spent[1]) / (FACTORY[2] - FACTORY[1])
    return max(0.0, spent[1] - FACTORY[1] * per_sample), per_sample


def measure_sampling_cost(
    state: State, solutions: Sequence[Solution], share: float, params: SamplingParams, threads: int
) -> float:
    """Measure the core-seconds per sample if the model thinks on the fraction `share` of the problems.

    A sample has the token count of the problem's solution, with or without thinking.

    The longest sample of a batch determines the number of decoding steps, so the lengths must vary as in real batches.
    """
    tokenizer = Tokenizer.byte_level()
    engine = Engine.of(state.model, tokenizer, chat_format(tokenizer), threads=threads)
    requests = []
    for index, (problem, lengths) in enumerate(solutions):
        thinking = int((index + 1) * share) > int(index * share)
        length = min(int(lengths.mean_reply_length(thinking)), engine.max_len - int(lengths.prompt) - 8)
        requests.append(Request(problem.messages, replace(params, max_tokens=length, seed=index), "auto"))
    engine.generate(requests[:2])
    began = time.process_time()
    engine.generate(requests)
    return (time.process_time() - began) / (len(requests) * params.n)
