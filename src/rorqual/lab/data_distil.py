"""The experiment `data-distil`: can a small training set replace the full original set if a teacher labels or writes
the small set?

Each seed has one base student, one teacher and three simple tasks (`tasks.everyday`). All students of a task start from
the same base and take the same number of steps of the same size. Only the training data of the students differs. The
teacher is trained on true answers to questions outside the original sets. In this respect the teacher resembles a large model,
which has learned from data that its students do not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rorqual.data.distilled import read_distilled
from rorqual.data.source.conversations import read_conversations
from rorqual.engine.request import SamplingParams
from rorqual.evals.compare import is_right
from rorqual.evals.evaluation import Evaluation
from rorqual.factory.config import FactoryConfig, FilterConfig
from rorqual.lab.data_distil_sets import (
    answer_losses,
    held_out_problems,
    original_set,
    write_base_training_data,
    write_original_sets,
    write_teacher_sets,
)
from rorqual.lab.experiment import ArmPair, Experiment, Quantity, Readings, scale_amount, values_in_group_all
from rorqual.lab.job import ComputeJob, EvaluationJob, ExperimentJob, SampleJob, TrainJob, load_evaluation, load_value
from rorqual.recipes.pretrain import pretrain
from rorqual.recipes.sft import sft
from rorqual.tasks.everyday import EVERYDAY_TASKS, price_of
from rorqual.tasks.everyday.everyday_task import Form
from rorqual.tasks.everyday.prices import HIGH
from rorqual.train.run import Run

READ, TEXT, BASE, TEACHER = "data-read", "data-text", "data-base", "data-teacher"
ARMS: Mapping[str, str] = {
    "full-original": "all, original",
    "small-original": "a tenth, original",
    "small-teacher": "a tenth, teacher",
    "small-true": "a tenth, true",
    "full-teacher": "all, teacher",
}
"""The label of each training set. Each compared student trains on one training set."""

AMOUNTS: Mapping[str, tuple[int, int]] = {
    "questions": (4000, 200),
    "text_steps": (300, 2),
    "words_steps": (500, 2),
    "teacher_steps": (300, 2),
    "full": (2000, 40),
    "small": (200, 8),
    "student_steps": (350, 2),
    "count": (200, 8),
}
"""For each kind of work, such as training steps: the amount in a full experiment, and the smallest amount in a scaled-down
experiment. The amounts were chosen on seed 0 and the dev split, before the runs of the published result.

Short training favours the small training set, and long training favours the full set (docs/LOG.md). The number of training
steps is the maximum that fits into twenty core-minutes. If the number of steps is too small, the result is biased in favour of
the claim.
"""
WorkAmounts = Mapping[str, int]
TEACHER_ROWS, ROWS, ROW = 16, 8, 64
LONGEST: Mapping[Form, int] = {"classification": 8, "regression": 8, "generation": 24}
"""Maximum number of tokens of a reply. True answers need at most half of this number, and question and reply together always
fit into a row."""


def scale_amounts(share: float) -> WorkAmounts:
    """Return the amounts of work in `AMOUNTS`, scaled by `share`."""
    return {name: scale_amount(full, share, least) for name, (full, least) in AMOUNTS.items()}


MARGIN = 0.02
"""Non-inferiority margin, in accuracy or R²: the score with the small set may be lower than the score with the full set by
at most `MARGIN`. `MARGIN` was set before the runs of the published result."""
QUESTIONS = (
    ("full-original", "small-teacher", "a tenth from the teacher, against all of the original"),
    ("full-original", "small-true", "control: a tenth with true answers, against all of the original"),
    ("small-original", "small-teacher", "a tenth: from the teacher, against the original"),
    ("full-teacher", "small-teacher", "from the teacher: a tenth, against all"),
    ("full-original", "full-teacher", "all: from the teacher, against the original"),
)
LOSS, ROWS_QUANTITY = "loss on true sentences", "rows of the training set"


def score_name(task: str) -> str:
    """Return the name of the score that a task uses: the share of right answers, or R²."""
    return f"{task}, R²" if EVERYDAY_TASKS[task].form == "regression" else task


def _pairs() -> Iterator[ArmPair]:
    for place, (a, b, question) in enumerate(QUESTIONS):
        for name in map(score_name, EVERYDAY_TASKS):
            claimed = () if place else (name,)
            yield ArmPair(question=question, quantity=name, a=a, b=b, of=name, claimed=claimed, bound=-MARGIN)
    a, b, question = QUESTIONS[0]
    yield ArmPair(question=f"{question}: {LOSS}", quantity=LOSS, a=a, b=b, of="sentences")


class DataDistil(Experiment):
    """The experiment on distilled data sets, with one task each for classification, regression and generation."""

    name = "data-distil"
    title = "A small set from a teacher against the full original one"
    claim = (
        "a small model trained on a tenth of the data, labelled or written by a teacher, scores at most 0.02 lower than one trained on "
        "all of the noisy original data, in classification, regression and generation"
    )
    source = "popular accounts; for less data, Distilling Step-by-Step, 2305.02301, abstract"
    arms = ARMS
    quantities = {
        **{
            score_name(task): Quantity("ratio" if one.form == "regression" else "points")
            for task, one in EVERYDAY_TASKS.items()
        },
        LOSS: Quantity("nats"),
        ROWS_QUANTITY: Quantity(),
    }
    pairs = tuple(_pairs())
    wording = {
        "reviews": "the accuracy on reviews",
        "prices, R²": "R² on prices",
        "sentences": "the share of valid sentences",
        "full-original": "with all of the original data",
        "small-teacher": "with a tenth from the teacher",
    }
    note = (
        "Scores: the share of right greedy answers, or 1 - mean squared error / variance (R², where a reply without a price gets the worst "
        "error)."
    )

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        work = scale_amounts(share)
        shared: list[ExperimentJob] = [
            ComputeJob(
                name=READ,
                estimate=0.3 * share,
                function=lambda at: write_base_training_data(at / READ, seed, work["questions"]),
            ),
            TrainJob(name=TEXT, estimate=7 * share, needs=(READ,), make=lambda: text_run(place, seed, work)),
            TrainJob(name=BASE, estimate=11 * share, needs=(TEXT,), make=lambda: base_run(place, seed, work)),
            TrainJob(name=TEACHER, estimate=37 * share, needs=(READ,), make=lambda: teacher_run(place, seed, work)),
        ]
        return [*shared, *(job for task in EVERYDAY_TASKS for job in task_jobs(task, seed, place, work, share))]

    def runs_of(self, arm: str) -> tuple[str, ...]:
        return (TEACHER,) if arm == TEACHER else tuple(f"data-{task}-{arm}" for task in EVERYDAY_TASKS)

    def read(self, place: Path) -> Readings:
        found: dict[str, Any] = {name: {} for name in self.quantities}
        for task in EVERYDAY_TASKS:
            counts = load_value(place, f"data-{task}-sets")
            for arm in (*ARMS, TEACHER):
                name = task_evaluation_name(task, TEACHER if arm == TEACHER else f"data-{task}-{arm}")
                found[score_name(task)][arm] = values_in_group_all(scores_by_problem(load_evaluation(place, name)))
                if EVERYDAY_TASKS[task].form == "generation":
                    found[LOSS][arm] = values_in_group_all(load_value(place, f"{name}-loss"))
                if arm != TEACHER:
                    found[ROWS_QUANTITY].setdefault(arm, {})[task] = {0: counts[arm]}
        return found


def scores_by_problem(result: Evaluation) -> list[float]:
    """Return the score of each problem: 1 for a right reply, 0 for a wrong reply.

    For the regression task, whose answers are prices, the score is 1 - error² / variance, and the mean of these scores is R². A
    reply that is not a price counts as the worst possible price.
    """
    if result.samples[0].family != "prices":
        return [is_right(sample) for sample in result.samples]
    truths = [int(sample.answer) for sample in result.samples]
    variance = float(np.var(truths))
    prices = [price_of(sample.reply) for sample in result.samples]
    errors = [
        max(true, HIGH - true) if price is None else price - true for price, true in zip(prices, truths, strict=True)
    ]
    return [1 - error**2 / variance for error in errors]


def text_run(place: Path, seed: int, work: WorkAmounts) -> Run:
    """Return the run that pretrains the students' base on lines that are either a
    question without an answer, or an answer sentence without a question."""
    return pretrain(
        data=str(place / READ / "base.txt"),
        tokenizer=str(place / READ / "tokenizer.json"),
        size="student",
        steps=work["text_steps"],
        rows=ROWS,
        row=ROW,
        seed=seed,
    )


def base_run(place: Path, seed: int, work: WorkAmounts) -> Run:
    """Return the run that trains the students' base on the meaning of single words.

    Without this training stage, the base cannot copy from a question, and all answers of a student are wrong after 300 steps.
    """
    words = str(place / READ / "words.jsonl")
    return sft(data=words, start=str(place / TEXT), steps=work["words_steps"], rows=ROWS, row=ROW, seed=seed)


def teacher_run(place: Path, seed: int, work: WorkAmounts) -> Run:
    """Return the run that trains the teacher on true answers to half of the problems of all tasks. The teacher is four
    times as large as a student."""
    return sft(
        task="everyday",
        options={"pool": "teacher"},
        think=0.0,
        tokenizer=str(place / READ / "tokenizer.json"),
        size="small",
        steps=work["teacher_steps"],
        rows=TEACHER_ROWS,
        row=ROW,
        seed=seed,
    )


def student_run(place: Path, task: str, arm: str, seed: int, work: WorkAmounts) -> Run:
    """Return the run that trains a student on the training set `arm`. The numbers of steps, rows and tokens per row are the
    same for all training sets."""
    data = str(training_set_file(place, task, arm))
    run = sft(data=data, start=str(place / BASE), steps=work["student_steps"], rows=ROWS, row=ROW, seed=seed)
    # At a tiny budget, tokenizing the teacher's text again can give more tokens than the teacher sampled.
    return run.model_copy(update={"source": run.source.model_copy(update={"longer": "cut"})})


def distil_factory_config(place: Path, task: str, seed: int, work: WorkAmounts) -> FactoryConfig:
    """Return the factory config of a task.

    For classification and regression, the teacher labels with greedy decoding, and every label is kept. For generation,
    the teacher samples sentences, and only the sentences that the grader accepts are kept.
    """
    writes = EVERYDAY_TASKS[task].form == "generation"
    return FactoryConfig(
        teacher=str(place / TEACHER),
        task="everyday",
        options={"names": [task], "pool": "original"},
        problems=work["full"],
        samples=2 if writes else 1,
        seed=seed,
        thinking="off",
        max_tokens=LONGEST[EVERYDAY_TASKS[task].form],
        temperature=1.0 if writes else 0.0,
        keep="right" if writes else "all",
        filters=FilterConfig() if writes else FilterConfig(names=()),
    )


def task_jobs(task: str, seed: int, place: Path, work: WorkAmounts, share: float) -> list[ExperimentJob]:
    """Return the jobs of a task: let the teacher label the problems, write the training sets, train one student on each set,
    and evaluate all models."""
    labels, sets = f"data-{task}-labels", f"data-{task}-sets"
    jobs: list[ExperimentJob] = [
        SampleJob(
            name=labels, estimate=3 * share, needs=(TEACHER,), config=distil_factory_config(place, task, seed, work)
        ),
        ComputeJob(
            name=sets,
            estimate=0.8 * share,
            needs=(labels,),
            function=partial(write_training_sets, task, seed, work["small"]),
        ),
    ]
    models = {arm: f"data-{task}-{arm}" for arm in ARMS}
    for arm, name in models.items():
        make = partial(student_run, place, task, arm, seed, work)
        jobs.append(TrainJob(name=name, estimate=8 * share, needs=(BASE, sets), make=make))
    for model in (TEACHER, *models.values()):
        jobs += evaluation_jobs(task, model, seed, work, share)
    return jobs


def training_set_file(place: Path, task: str, arm: str) -> Path:
    """Return the file with the training set of an arm."""
    return place / f"data-{task}-sets" / f"{arm}.{'parquet' if arm.endswith('teacher') else 'jsonl'}"


def write_training_sets(task: str, seed: int, small: int, at: Path) -> dict[str, int]:
    """Write all training sets of a task, and return the number of rows of each set."""
    labelled = read_distilled(at / f"data-{task}-labels" / "data.parquet")
    problems = original_set(task, seed, labelled.rows)
    folder = at / f"data-{task}-sets"
    write_original_sets(folder, problems, small)
    write_teacher_sets(folder, labelled, {problem.key for problem in problems[:small]})
    return {arm: len(read_conversations(training_set_file(at, task, arm)).conversations) for arm in ARMS}


def evaluation_jobs(task: str, model: str, seed: int, work: WorkAmounts, share: float) -> list[ExperimentJob]:
    """Return the jobs that evaluate a model's greedy answers to held-out questions of a task.

    For generation, a further job measures the model's loss on true sentences.
    """
    shared: dict[str, Any] = {
        "model": model, "seed": seed, "task": "everyday", "options": {"names": [task]}, "count": work["count"],
        "thinking": "off", "needs": (model,),
    }  # fmt: skip
    name = task_evaluation_name(task, model)
    jobs: list[ExperimentJob] = [
        EvaluationJob(
            name=name,
            estimate=0.15 * share,
            params=SamplingParams(max_tokens=LONGEST[EVERYDAY_TASKS[task].form]),
            **shared,
        )
    ]
    if EVERYDAY_TASKS[task].form == "generation":
        loss = partial(measure_answer_losses, task, model, seed, work["count"])
        jobs.append(ComputeJob(name=f"{name}-loss", estimate=0.4 * share, needs=(model,), function=loss))
    return jobs


def measure_answer_losses(task: str, model: str, seed: int, count: int, at: Path) -> list[float]:
    """Return the model's loss on the true answer to each question of the evaluation, in nats per token."""
    return answer_losses(at / model, held_out_problems(task, seed, count, "test"))


def task_evaluation_name(task: str, model: str) -> str:
    """Return the name of the evaluation of a model on a task."""
    return f"{model}-on-{task}" if model == TEACHER else model + "-test"
