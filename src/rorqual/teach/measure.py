"""Measure the base model, the classical baselines and the taught model on the same test examples."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rorqual.core.records import Message, RunDir, Thinking
from rorqual.data.chat import ChatFormat
from rorqual.data.fingerprint import fingerprint
from rorqual.engine.engine import Engine
from rorqual.engine.request import Request, SamplingParams
from rorqual.evals.evaluating import evaluate
from rorqual.evals.evaluation import Evaluation, GradedSample
from rorqual.tasks.examples import AnswerKind, ExamplesTask
from rorqual.tasks.find import safe_grade
from rorqual.tasks.messages import ConversationProblem
from rorqual.tasks.task import Problem, Verdict
from rorqual.teach.answer_format import answer_format_instruction
from rorqual.teach.examples import Example
from rorqual.teach.paths import BEFORE
from rorqual.teach.train import engine_of

FEW = 4
MOST_SHOTS, SHOT_TOKENS = 256, 2048
"""Maximum number of examples in a prompt of the base model, and maximum number of tokens of all examples in the prompt."""
TRIED = 16
"""Number of problems that the base model answers to forecast the time of a baseline."""
BASE_TOKENS = 192
"""If no grammar restricts the replies, the token limit of the base model's replies is at least `BASE_TOKENS`."""
ReportProgress = Callable[[int, int], None]


def few_shot_examples(
    train: Sequence[Example], chat: ChatFormat, kind: AnswerKind, *, context: int, room: int, seed: int
) -> dict[str, Sequence[Example]]:
    """Return the examples in the base model's prompt for each baseline, by name. The prompts of the baselines have no example,
    four examples, or as many examples as fit.

    The examples in a prompt take at most `SHOT_TOKENS` tokens together, and leave `room` tokens for the problem and its reply.
    """
    drawn = list(train)
    random.Random(seed).shuffle(drawn)
    opening = _instruction_message(train, kind)
    most: list[Example] = []
    for one in drawn[:MOST_SHOTS]:
        turns = _turns([*most, one], kind)
        if len(chat.prompt((*opening, *turns, Message("user", "?")), "auto")) <= min(SHOT_TOKENS, context - room):
            most.append(one)
    counts = [count for count in (FEW, len(most)) if len(most) >= FEW]
    return {BEFORE: []} | {f"base, {count} examples": most[:count] for count in counts}


def _instruction_message(train: Sequence[Example], kind: AnswerKind) -> tuple[Message, ...]:
    text = answer_format_instruction(train, kind)
    return (Message("system", text),) if text else ()


def _turns(shots: Sequence[Example], kind: AnswerKind) -> tuple[Message, ...]:
    """Return examples as turns of a prompt. If answers are numbers or texts, the worked solution precedes the answer. If answers are labels
    or JSON, worked solutions are left out, because the grammar of the reply does not allow them."""
    free = kind in ("number", "text")
    answers = [f"{one.reasoning}\n{one.answer}" if free and one.reasoning else one.answer for one in shots]
    return tuple(
        message
        for one, answer in zip(shots, answers, strict=True)
        for message in (Message("user", one.prompt), Message("assistant", answer))
    )


@dataclass(frozen=True)
class Baseline:
    """A method of answering the test problems without training. `measure` is the function that evaluates the method, and
    `shots` are the examples in the prompt."""

    name: str
    measure: Callable[[], Evaluation]
    shots: Sequence[Example] = ()


class BaselineTooSlow(Exception):
    """Raised if measuring a baseline would take too long. `seconds` is the estimated time of the measurement."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


def measure_base(
    run: RunDir,
    task: ExamplesTask,
    name: str,
    shots: Sequence[Example],
    train: Sequence[Example],
    params: SamplingParams,
    *,
    most_seconds: float,
    show: ReportProgress,
) -> Evaluation:
    """Measure the base model on the test split. All prompts begin with the same
    examples, so a single engine core, with one prefix cache, is fastest.

    Raises BaselineTooSlow if the base model with examples would take longer than `most_seconds`, judged by its first replies.
    """
    opening = (*_instruction_message(train, task.kind), *_turns(shots, task.kind))
    problems = [
        ConversationProblem(
            key=one.key,
            prompt=one.prompt,
            answer=one.answer,
            family=one.family,
            meta={"messages": (*opening, Message("user", one.prompt))},
        )
        for one in test_problems(task)
    ]
    params = base_params(params)
    engine = engine_of(run, 1)
    engine.generate(
        [Request(problems[0].messages, replace(params, max_tokens=1, grammar=None))]
    )  # fills the prefix cache
    if shots and len(problems) > TRIED:
        began = time.monotonic()
        engine.generate([Request(one.messages, params) for one in problems[:TRIED]])
        seconds = (time.monotonic() - began) / TRIED * len(problems)
        if seconds > most_seconds:
            raise BaselineTooSlow(seconds)
    return measure_model(engine, task, problems, name, params, "auto", show=show)


def base_params(params: SamplingParams) -> SamplingParams:
    """Return the sampling parameters of the base model. Without a grammar, replies may
    be longer, because the model may reason before it answers."""
    return params if params.grammar else replace(params, max_tokens=max(params.max_tokens, BASE_TOKENS))


def measure_model(
    engine: Engine,
    task: ExamplesTask,
    problems: Sequence[Problem],
    name: str,
    params: SamplingParams,
    thinking: Thinking,
    *,
    show: ReportProgress,
) -> Evaluation:
    """Evaluate the model of `engine` on `problems`."""
    return evaluate(
        engine,
        task,
        problems=problems,
        count=len(problems),
        params=params,
        thinking=thinking,
        measured={},
        model=name,
        progress=show,
    )


def test_problems(task: ExamplesTask) -> list[Problem]:
    """Return the test problems, sorted by key."""
    return sorted(task.problems("test", 0), key=lambda problem: problem.key)


def record_measured_checkpoint(task: ExamplesTask, run: RunDir) -> ExamplesTask:
    """Return `task` after setting `task.checkpoint` to the fingerprint of `run`. The
    record of the reading of the test split contains this fingerprint.
    """
    task.checkpoint = fingerprint(run, run.checkpoint())
    return task


def evaluate_baseline(name: str, task: ExamplesTask, problems: Sequence[Problem], replies: Sequence[str]) -> Evaluation:
    """Return the evaluation of `replies`, which a baseline that is not a language model gives to `problems`."""
    return Evaluation(
        task=task.name,
        model=name,
        split="test",
        seed=0,
        count=len(problems),
        per_family=False,
        thinking="off",
        params=SamplingParams(),
        samples=tuple(
            GradedSample(
                key=problem.key,
                family=problem.family,
                level=problem.level,
                prompt=problem.prompt,
                answer=problem.answer,
                reply=reply,
                reasoning=None,
                verdict=safe_grade(task, problem, reply) if reply else Verdict.WRONG,
                last=safe_grade(task, problem, reply, read="last") if reply else Verdict.WRONG,
                unmarked=not task.is_marked(problem, reply),
                tokens=0,
                thinking_tokens=0,
                thought=False,
                truncated=False,
            )
            for problem, reply in zip(problems, replies, strict=True)
        ),
    )
