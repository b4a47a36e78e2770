"""What a quickstart will take on this machine: the work of each stage from the recipe, its pace from a short probe.

Steps, problems and lengths follow from the recipe and the tasks; seconds a step and a token are measured on fresh models of the
same shapes. What nobody knows before is how often a reinforced model will choose to think and how many groups will teach it
something: `GOES_OVER` and `TEACHES` stand for them. The report and the start of Python are not forecast.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from rorqual.core.records import Message, RunDir
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.engine import Engine
from rorqual.engine.request import Request, SamplingParams
from rorqual.recipes.quickstart.place import BRANCHES
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
"""Share of samples in groups with right and wrong answers. Both shares were seen in quickstarts on other seeds to lie between 0.6 and 0.95."""
WARM, STEPS, BATCH = 2, 8, 64
DRAWN, ASKED = 256, 32


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a task's prompts, and of replies with and without thinking, as its worked solutions have them."""

    prompt: float
    thinking: float
    at_once: float

    def reply(self, share: float) -> float:
        """Of a model that thinks on `share` of the problems: it answers about as long as what it learned from."""
        return share * self.thinking + (1 - share) * self.at_once


@dataclass(frozen=True)
class Pace:
    """Core-seconds of a shape of model: a fine-tuning step, a token of an update in reinforcement, a token sampled at temperature 1,
    and one sampled as evaluations do. `cores`: cores that were at work at once in fine-tuning."""

    step: float
    update: float
    sample: float
    answer: float
    cores: float
    tokens: float


@dataclass(frozen=True)
class Stage:
    """A stage's forecast, by the ledger's name. `cores`: how many work at once."""

    name: str
    core_seconds: float
    tokens: float
    cores: float

    @property
    def seconds(self) -> float:
        return self.core_seconds / self.cores


def forecast(scale: Scale, *, seed: int = 0, threads: int = 2) -> list[Stage]:
    """Probe both models, and say what each stage takes. Some ten core-seconds of probing for the full size."""
    teacher_run = sft(task=TASK, size=scale.model, rows=scale.sft_rows, row=scale.row, think=scale.think,
                      options={"hard": scale.sft_hard}, seed=seed)  # fmt: skip
    student_run = sft(task=STUDENT_TASK, size=scale.student, rows=scale.sft_rows, row=scale.row, think=scale.student_able_think,
                      options={"hard": scale.student_hard}, seed=seed)  # fmt: skip
    teaching, studying = lengths(TASK, scale.grpo_hard, seed), lengths(STUDENT_TASK, scale.student_hard, seed)
    teacher = probe(teacher_run, TASK, teaching, scale, threads)
    student = probe(student_run, STUDENT_TASK, studying, scale, threads)
    return stages(
        scale,
        teacher,
        student,
        teaching,
        studying,
        lengths(TASK, 0.5, seed),
        cells(TASK, 0.5),
        cells(STUDENT_TASK, scale.student_hard),
    )


def stages(
    s: Scale,
    teacher: Pace,
    student: Pace,
    teaching: Lengths,
    studying: Lengths,
    measured: Lengths,
    wide: int,
    narrow: int,
) -> list[Stage]:
    """The arithmetic: paces times work. `wide`, `narrow`: cells (families at a level) that the two evaluations have."""
    student_steps = s.student_able_steps + s.student_base_steps
    settled = over(s.think)
    modes = {"auto": 0.0, "on": measured.thinking, "off": measured.at_once}
    asked = s.per_cell * wide
    replies = [
        mean
        for share in (s.think, settled)
        for mode in modes
        for mean in [measured.reply(share) if mode == "auto" else modes[mode]]
    ]
    habits = {
        "teacher": settled,
        "student-base": s.student_think,
        "distilled": 1.0,
        "reinforced": 1.0,
        "answers-only": 0.0,
    }
    by_branch = {
        name: sum(studying.thinking if mode == "on" else studying.reply(habits[name]) for mode in shown)
        * s.student_per_cell
        * narrow
        for name, shown in BRANCHES.items()
    }
    own, others = by_branch.pop("teacher"), sum(by_branch.values())
    told = sum(map(len, BRANCHES.values())) * s.student_per_cell * narrow * studying.prompt
    sampled = s.distil_problems * studying.thinking
    return [
        Stage("train the teacher", s.sft_steps * teacher.step, s.sft_steps * teacher.tokens, teacher.cores),
        reinforced("reinforce the teacher", s.grpo_steps, s.grpo_problems * s.grpo_samples, teacher, teaching, s.think),
        Stage("measure the teacher", sum(replies) * asked * teacher.answer, sum(measured.prompt + r for r in replies) * asked, teacher.cores),
        Stage("train the base student", student_steps * student.step, student_steps * student.tokens, student.cores),
        Stage("sample the teacher", sampled * teacher.answer, sampled + s.distil_problems * studying.prompt, teacher.cores),
        Stage("distil the student", s.distil_steps * student.step, s.distil_steps * student.tokens, student.cores),
        Stage("train on answers alone", s.distil_steps * student.step, s.distil_steps * student.tokens, student.cores),
        reinforced("reinforce the rival", s.rival_steps, s.rival_problems * s.rival_samples, student, studying, s.student_think),
        Stage("measure the students", own * teacher.answer + others * student.answer, told + own + others, student.cores),
    ]  # fmt: skip


def over(share: float) -> float:
    """How often a model thinks, in the mean over its reinforcement, that did so on `share` of the problems before."""
    return share + (1 - share) * GOES_OVER


def reinforced(name: str, steps: int, samples: int, pace: Pace, lengths: Lengths, share: float) -> Stage:
    """Each step samples, checks all that it sampled with one forward, and trains on the groups that teach."""
    reply = lengths.reply(over(share))
    seen = samples * (lengths.prompt + reply)
    cost = samples * reply * pace.sample + seen * pace.update * (1 / 3 + TEACHES)
    return Stage(name, steps * cost, steps * (samples * reply + seen * TEACHES), pace.cores)


def lengths(task: str, hard: float, seed: int) -> Lengths:
    """Counted on the first problems of the train split."""
    chat = chat_format(Tokenizer.byte_level(), "deepseek")
    prompts: list[int] = []
    long: list[int] = []
    short: list[int] = []
    for problem in drawn(task, hard, seed):
        for think, kept in ((True, long), (False, short)):
            reply = Message("assistant", problem.answer, problem.steps if think else None)
            rendered = chat.render((*problem.messages, reply))
            kept.append(sum(rendered.mask))
            prompts.append(len(rendered.ids) - sum(rendered.mask))
    return Lengths(fmean(prompts), fmean(long), fmean(short))


def drawn(task: str, hard: float, seed: int) -> list[Problem]:
    """The first problems of a task."""
    return list(islice(load_task(task, options={"hard": hard}).problems("train", seed), DRAWN))


def cells(task: str, hard: float) -> int:
    """Families, each at its levels, as an evaluation counts them."""
    return len({(problem.family, problem.level) for problem in drawn(task, hard, 0)})


def probe(run: Run, task: str, lengths: Lengths, scale: Scale, threads: int) -> Pace:
    """Measure a shape of model: a few steps of its own fine-tuning, a few updates as reinforcement has them, two batches of samples."""
    state, step, wall, tokens = paced(run, threads)
    adam = run.model_copy(update={"optim": nudged(1e-4), "source": run.source.model_copy(update={"rows": BATCH})})
    _, update, _, learned = paced(adam, threads)
    problems = drawn(task, scale.student_hard, 1)
    reply = round(lengths.reply(0.75))
    free = SamplingParams(max_tokens=reply, temperature=1.0, n=scale.grpo_samples, ignore_eos=True)
    asked = SamplingParams(max_tokens=reply, temperature=scale.temperature, top_p=scale.top_p, ignore_eos=True)
    return Pace(
        step=step,
        update=update / learned,
        sample=sampling(state, problems[:ASKED], free, threads),
        answer=sampling(state, problems, asked, threads),
        cores=step / wall,
        tokens=tokens,
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


def sampling(state: State, problems: list[Problem], params: SamplingParams, threads: int) -> float:
    """Core-seconds a token of replies, the reading of prompts included."""
    tokenizer = Tokenizer.byte_level()
    engine = Engine(state.model, tokenizer, chat_format(tokenizer, "deepseek"), threads=threads)
    requests = [Request(problem.messages, params, "auto") for problem in problems]
    engine.generate(requests[:2])
    began = time.process_time()
    engine.generate(requests)
    return (time.process_time() - began) / (len(requests) * params.n * params.max_tokens)
