"""What a quickstart will take on this machine: the work of each stage from the recipe, its pace from a short probe.

Steps, problems and lengths follow from the recipe and the tasks; seconds a step and an answer are measured on fresh models of the
same shapes. An answer is as long as the solution that a model learned from, which its probe is made to sample to that length. What
nobody knows before is how often a reinforced model will choose to think and how many groups will teach it something: `GOES_OVER`
and `TEACHES` stand for them. The report and the start of Python are not forecast.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from rorqual.core.records import Message, RunDir
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.distil import FactoryConfig, FilterConfig, sample_teacher
from rorqual.engine.engine import Engine
from rorqual.engine.request import Request, SamplingParams
from rorqual.evals.run import pick
from rorqual.recipes.quickstart.place import BRANCHES, MODES, WHEN
from rorqual.recipes.quickstart.scale import STUDENT_TASK, TASK, Scale
from rorqual.recipes.sft import sft
from rorqual.recipes.start import nudged
from rorqual.tasks.base import Problem
from rorqual.tasks.find import load_task
from rorqual.train.loop import fit
from rorqual.train.run import Run
from rorqual.train.state import State

GOES_OVER = 2 / 3
"""How far of the way from its first habit to always thinking a reinforced model is, in the mean over its training."""
TEACHES = 0.8
"""Share of samples in groups with right and wrong answers. In the quickstart of seed 0 it was 0.94 for the teacher and 0.64 for the
rival, and `GOES_OVER` 0.38 and 0.71: both constants stand near the middle, and another seed may lie elsewhere."""
WARM, STEPS, BATCH = 2, 8, 64
DRAWN = 384
FACTORY = (2, 8, 520)
"""Samples of the factory's probe: the first loads what it needs, the others are set against each other."""


@dataclass(frozen=True)
class SolutionLength:
    """A problem, and tokens of its prompt and of its solution with and without thinking."""

    problem: Problem
    prompt: int
    thinking: int
    at_once: int


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a task's prompts, and of replies with and without thinking."""

    prompt: float
    thinking: float
    at_once: float

    def reply(self, share: float) -> float:
        """Of a model that thinks on `share` of the problems."""
        return share * self.thinking + (1 - share) * self.at_once


@dataclass(frozen=True)
class Pace:
    """Core-seconds of a shape of model: a fine-tuning step of `tokens`, a token of an update in reinforcement, a rollout, and an answer
    of an evaluation with thinking (`on`) and without (`off`). `cores`: how many were at work at once."""

    step: float
    tokens: float
    update: float
    rollout: float
    on: float
    off: float
    cores: float

    def answer(self, share: float) -> float:
        """Of a model that thinks on `share` of the problems."""
        return share * self.on + (1 - share) * self.off


@dataclass(frozen=True)
class Exam:
    """An evaluation's problems: how many, their lengths, and core-seconds to draw them, which each model's evaluation does."""

    problems: int
    lengths: Lengths
    drawing: float


@dataclass(frozen=True)
class StageForecast:
    """A stage's forecast, by the ledger's name."""

    name: str
    core_seconds: float
    tokens: float
    cores: float

    @property
    def seconds(self) -> float:
        return self.core_seconds / self.cores


def forecast(scale: Scale, *, seed: int = 0, threads: int = 2) -> list[StageForecast]:
    """Probe both models, and say what each stage takes. Some twenty core-seconds of probing for the full size."""
    teacher_run = sft(task=TASK, size=scale.model, think=scale.think, options={"hard": scale.sft_hard},
                      rows=scale.sft_rows, row=scale.row, seed=seed)  # fmt: skip
    student_run = sft(task=STUDENT_TASK, size=scale.student, think=scale.student_able_think, options={"hard": scale.student_hard},
                      rows=scale.sft_rows, row=scale.row, seed=seed)  # fmt: skip
    teaching, studying = worked(TASK, scale.grpo_hard, seed), worked(STUDENT_TASK, scale.student_hard, seed)
    teacher = probe(teacher_run, teaching, over(scale.think), scale, threads)
    student = probe(student_run, studying, over(scale.student_think), scale, threads)
    wide, narrow = (
        exam(TASK, 0.5, scale.per_cell, seed),
        exam(STUDENT_TASK, scale.student_hard, scale.student_per_cell, seed),
    )
    factory = factory_pace(teacher_run, scale, mean(studying), threads)
    return stages(scale, teacher, student, mean(teaching), mean(studying), wide, narrow, factory)


def stages(
    s: Scale,
    teacher: Pace,
    student: Pace,
    teaching: Lengths,
    studying: Lengths,
    wide: Exam,
    narrow: Exam,
    factory: tuple[float, float],
) -> list[StageForecast]:
    """The arithmetic: paces times work. `wide`: the teacher's evaluation; `narrow`: the students'; `factory`: as `factory_pace`."""
    habits = {"before": s.think, "after": over(s.think, 1.0)}
    first = [thinks(mode, habits[when]) for when in WHEN for mode in MODES]
    able = s.student_able_steps + s.student_base_steps
    base = StageForecast("train the base student", able * student.step, able * student.tokens, student.cores)
    further = (s.distil_steps * student.step, s.distil_steps * student.tokens, student.cores)
    prompts = s.distil_problems * (studying.prompt + studying.thinking)
    return [
        StageForecast("train the teacher", s.sft_steps * teacher.step, s.sft_steps * teacher.tokens, teacher.cores),
        reinforced("reinforce the teacher", s.grpo_steps, s.grpo_problems * s.grpo_samples, teacher, teaching, s.think),
        measured("measure the teacher", [(teacher, first, len(WHEN))], wide),
        base,
        StageForecast("sample the teacher", factory[0] + s.distil_problems * factory[1], prompts, teacher.cores),
        StageForecast("distil the student", *further),
        StageForecast("train on answers alone", *further),
        reinforced("reinforce the rival", s.rival_steps, s.rival_problems * s.rival_samples, student, studying, s.student_think),
        measured("measure the students", branches(s, teacher, student), narrow),
    ]  # fmt: skip


def branches(s: Scale, teacher: Pace, student: Pace) -> list[tuple[Pace, list[float], int]]:
    """Each branch's pace, how often it thinks in each of its evaluations, and how many models it is."""
    habits = {"teacher": over(s.think, 1.0), "student-base": s.student_think, "answers-only": 0.0}
    return [
        (teacher if name == "teacher" else student, [thinks(mode, habits.get(name, 1.0)) for mode in modes], 1)
        for name, modes in BRANCHES.items()
    ]


def measured(name: str, models: Sequence[tuple[Pace, list[float], int]], exam: Exam) -> StageForecast:
    """Evaluations: for each model its answers, and the drawing of the problems."""
    core = sum(exam.problems * pace.answer(share) for pace, shares, _ in models for share in shares)
    tokens = sum(
        exam.problems * (exam.lengths.prompt + exam.lengths.reply(share)) for _, shares, _ in models for share in shares
    )
    drawing = exam.drawing * sum(count for _, _, count in models)
    return StageForecast(name, core + drawing, tokens, models[-1][0].cores)


def reinforced(name: str, steps: int, samples: int, pace: Pace, lengths: Lengths, share: float) -> StageForecast:
    """Each step samples, checks all that it sampled with one forward, and trains on the groups that teach."""
    reply = lengths.reply(over(share))
    seen = samples * (lengths.prompt + reply)
    cost = samples * pace.rollout + seen * pace.update * (1 / 3 + TEACHES)
    return StageForecast(name, steps * cost, steps * (samples * reply + seen * TEACHES), pace.cores)


def thinks(mode: str, habit: float) -> float:
    """How often a model thinks that is asked so."""
    return {"on": 1.0, "off": 0.0}.get(mode, habit)


def over(share: float, goes: float = GOES_OVER) -> float:
    """How often a model thinks once reinforcement has brought it `goes` of the way, that did so on `share` of the problems before."""
    return share + (1 - share) * goes


def worked(task: str, hard: float, seed: int) -> list[SolutionLength]:
    """The first problems of the train split with their lengths."""
    return counted(list(islice(load_task(task, options={"hard": hard}).problems("train", seed), DRAWN)))


def counted(problems: Sequence[Problem]) -> list[SolutionLength]:
    """Problems with their lengths in the quickstart's own chat."""
    chat = chat_format(Tokenizer.byte_level())
    found = []
    for problem in problems:
        long, short = (
            chat.render((*problem.messages, Message("assistant", problem.answer, steps))).mask
            for steps in (problem.steps, None)
        )
        found.append(SolutionLength(problem, len(long) - sum(long), sum(long), sum(short)))
    return found


def mean(solutions: Sequence[SolutionLength]) -> Lengths:
    """The means of lengths."""
    return Lengths(*(fmean(getattr(one, name) for one in solutions) for name in ("prompt", "thinking", "at_once")))


def exam(task: str, hard: float, count: int, seed: int) -> Exam:
    """Draw an evaluation's problems, and count what that takes."""
    began = time.process_time()
    problems = pick(load_task(task, options={"hard": hard}), "test", count, seed, per_family=True)
    drawing = time.process_time() - began
    return Exam(len(problems), mean(counted(problems[:: max(1, len(problems) // DRAWN)])), drawing)


def probe(run: Run, solutions: Sequence[SolutionLength], share: float, scale: Scale, threads: int) -> Pace:
    """Measure a shape of model: a few steps of its own fine-tuning, updates as reinforcement has them, rollouts, and answers."""
    state, step, wall, tokens = paced(run, threads)
    adam = run.model_copy(update={"optim": nudged(1e-4), "source": run.source.model_copy(update={"rows": BATCH})})
    _, update, _, learned = paced(adam, threads)
    free = SamplingParams(n=scale.grpo_samples, temperature=1.0, ignore_eos=True)
    asked = SamplingParams(temperature=scale.temperature, top_p=scale.top_p, ignore_eos=True)
    few = solutions[: scale.grpo_problems]
    return Pace(
        step=step,
        tokens=tokens,
        update=update / learned,
        rollout=sampling(state, few, share, free, threads),
        on=sampling(state, solutions, 1.0, asked, threads),
        off=sampling(state, solutions, 0.0, asked, threads),
        cores=step / wall,
    )


def paced(run: Run, threads: int) -> tuple[State, float, float, float]:
    """The trained state, and core-seconds, seconds and tokens of a step."""
    records: list[dict[str, float]] = []
    with TemporaryDirectory() as folder:
        short = run.model_copy(update={"steps": WARM + STEPS})
        state = fit(short, RunDir(Path(folder) / "probe"), threads=threads, quiet=True, observe=records.append)
    kept = records[WARM:]
    core, wall, tokens = (fmean(record[name] for record in kept) for name in ("core_seconds", "seconds", "tokens"))
    return state, core, wall, tokens


def factory_pace(run: Run, scale: Scale, lengths: Lengths, threads: int) -> tuple[float, float]:
    """Core-seconds of the factory whatever it samples (its card, with pictures), and of each sample, verified and kept."""
    spent = []
    # A fresh model says each token about as often as any other, the one that stops too: room so that the mean length is right.
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
    each = max(0.0, spent[2] - spent[1]) / (FACTORY[2] - FACTORY[1])
    return max(0.0, spent[1] - FACTORY[1] * each), each


def sampling(
    state: State, solutions: Sequence[SolutionLength], share: float, params: SamplingParams, threads: int
) -> float:
    """Core-seconds a sample, `share` of the problems at the length of their thinking, the rest at that of an answer at once: a batch
    takes as many steps as its longest, so that lengths must be spread as real ones are."""
    tokenizer = Tokenizer.byte_level()
    engine = Engine.of(state.model, tokenizer, chat_format(tokenizer), threads=threads)
    requests = []
    for place, one in enumerate(solutions):
        thinking = int((place + 1) * share) > int(place * share)
        length = min(one.thinking if thinking else one.at_once, engine.max_len - one.prompt - 8)
        requests.append(Request(one.problem.messages, replaced(params, length, place), "auto"))
    engine.generate(requests[:2])
    began = time.process_time()
    engine.generate(requests)
    return (time.process_time() - began) / (len(requests) * params.n)


def replaced(params: SamplingParams, length: int, seed: int) -> SamplingParams:
    """`params` for a reply of `length` tokens, with a seed of its own."""
    return SamplingParams(length, params.temperature, params.top_p, params.top_k, seed, params.n, params.ignore_eos)
