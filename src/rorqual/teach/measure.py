"""Measure rungs on the test split, and make the prompts of the base model."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rorqual.core.records import Message
from rorqual.data.chat import ChatFormat
from rorqual.engine.request import SamplingParams
from rorqual.evals.evaluation import Evaluation, GradedSample
from rorqual.tasks.examples import AnswerKind, ExamplesTask
from rorqual.tasks.find import safe_grade
from rorqual.tasks.task import Problem, Verdict
from rorqual.teach.answer_format import answer_format_instruction
from rorqual.teach.examples import Example
from rorqual.teach.rungs.rung import Guess

MOST_SHOTS, SHOT_TOKENS = 256, 2048
"""Maximum number of examples in a prompt of the base model, and maximum number of tokens of all examples in the prompt."""
BASE_TOKENS = 192
"""If no grammar restricts the replies, the token limit of the base model's replies is at least `BASE_TOKENS`."""


def instruction_message(train: Sequence[Example], kind: AnswerKind) -> tuple[Message, ...]:
    """Return the message that tells the base model the format of answers, or nothing if there is nothing to tell."""
    text = answer_format_instruction(train, kind)
    return (Message("system", text),) if text else ()


def most_shots(
    train: Sequence[Example], chat: ChatFormat, kind: AnswerKind, *, context: int, room: int, seed: int
) -> list[Message]:
    """Return as many examples as fit into a prompt of the base model, as turns.

    They take at most `SHOT_TOKENS` tokens together with the instruction, and leave `room` tokens for the problem and its reply.
    """
    drawn = list(train)
    random.Random(seed).shuffle(drawn)
    opening = instruction_message(train, kind)
    turns: list[Message] = []
    for one in drawn[:MOST_SHOTS]:
        more = [*turns, *_turns(one, kind)]
        if len(chat.prompt((*opening, *more, Message("user", "?")), "auto")) <= min(SHOT_TOKENS, context - room):
            turns = more
    return turns


def _turns(one: Example, kind: AnswerKind) -> tuple[Message, Message]:
    """Return an example as turns of a prompt. If answers are numbers or texts, the worked solution precedes the answer. If answers are
    labels or JSON, worked solutions are left out, because the grammar of the reply does not allow them."""
    free = kind in ("number", "text")
    answer = f"{one.reasoning}\n{one.answer}" if free and one.reasoning else one.answer
    return Message("user", one.prompt), Message("assistant", answer)


def test_problems(task: ExamplesTask) -> list[Problem]:
    """Return the test problems, sorted by key."""
    return sorted(task.problems("test", 0), key=lambda problem: problem.key)


def evaluate_guesses(
    name: str, task: ExamplesTask, problems: Sequence[Problem], guesses: Sequence[Guess]
) -> Evaluation:
    """Return the evaluation of the guesses that the rung `name` makes for `problems`."""
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
                reply=guess.answer,
                reasoning=guess.reasoning or None,
                verdict=safe_grade(task, problem, guess.answer) if guess.answer else Verdict.WRONG,
                last=safe_grade(task, problem, guess.answer, read="last") if guess.answer else Verdict.WRONG,
                unmarked=not task.is_marked(problem, guess.answer),
                tokens=0,
                thinking_tokens=0,
                thought=bool(guess.reasoning),
                truncated=False,
            )
            for problem, guess in zip(problems, guesses, strict=True)
        ),
    )
