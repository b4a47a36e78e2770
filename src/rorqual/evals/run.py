"""Evaluate a model on a task: choose problems, generate answers, grade them, and keep every sample."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from rorqual.core.errors import ConfigError, DataError, RorqualError
from rorqual.core.records import Thinking
from rorqual.engine.request import Completion, Generator, Request, SamplingParams
from rorqual.evals.baselines import baselines
from rorqual.evals.evaluation import ALL, Evaluation, GradedSample
from rorqual.tasks.base import Problem, Split, Task, Verdict
from rorqual.tasks.find import load_task, safe_grade, safe_problems

GREEDY = SamplingParams()
PATIENCE = 20
"""`pick` stops after too many consecutive draws without a new problem. The limit is at least `PATIENCE` times
the mean number of draws per problem in the rarest unfinished stratum (`_patience`)."""


def pick(task: Task, split: Split, count: int, seed: int, per_family: bool) -> list[Problem]:
    """Return the evaluation problems: the same arguments give the same problems, and no key occurs twice.

    With `per_family` the result has `count` problems of each stratum (family, level), otherwise `count` problems in
    total. A task may generate problems endlessly, and its strata are not known in advance. The search therefore stops
    after many draws that add no problem. The limit on draws without a new problem is higher if an unfinished stratum is
    rare. A stratum with fewer than `count` distinct problems gets every problem that the search found.

    Raises DataError if `count` is below 1 or the split contains no problems.
    """
    if count < 1:
        raise DataError(
            f"count={count} would select no problems", where=f"task {task.name}", remedy="Set count to at least 1."
        )
    chosen: dict[str, Problem] = {}
    taken: Counter[tuple[str, str]] = Counter()
    idle = patience = 0
    for drawn, problem in enumerate(safe_problems(task, split, seed), 1):
        stratum = (problem.family, problem.level) if per_family else (ALL, ALL)
        if taken[stratum] < count and problem.key not in chosen:
            chosen[problem.key] = problem
            taken[stratum] += 1
            idle, patience = 0, _patience(taken, count, drawn)
            if not per_family and taken[stratum] == count:
                break
        else:
            idle += 1
            if idle >= patience:
                break
    if not chosen:
        raise DataError(
            f"the {split} split contains no problems",
            where=f"task {task.name}",
            remedy="Choose another split or check the data.",
        )
    if per_family:
        order = {name: place for place, name in enumerate(dict.fromkeys((p.family, p.level) for p in chosen.values()))}
        return sorted(chosen.values(), key=lambda problem: order[problem.family, problem.level])
    return list(chosen.values())


def _patience(taken: Counter[tuple[str, str]], count: int, drawn: int) -> int:
    """Return how many consecutive draws without a new problem are allowed. The number is higher if
    there are more strata, or if an unfinished stratum is rarer."""
    rarest = min((number for number in taken.values() if number < count), default=drawn)
    return PATIENCE * max(5, len(taken), drawn // rarest)


def evaluate(
    generator: Generator,
    task: Task | str,
    *,
    split: Split = "test",
    count: int = 100,
    seed: int = 0,
    thinking: Thinking = "auto",
    params: SamplingParams = GREEDY,
    per_family: bool = False,
    progress: Callable[[int, int], None] | None = None,
    model: str = "",
    problems: Sequence[Problem] | None = None,
    measured: dict[str, dict[str, float]] | None = None,
    votes: bool = False,
) -> Evaluation:
    """Answer the problems that `pick` returns, grade each reply, and return all samples.

    `task` is a task object or a task name such as `families:add`.

    `params.n` is the number of samples per problem. The seed of a problem is derived from `params.seed` and the
    problem's key, so an answer does not depend on the other problems in the evaluation. `model` is a label for tables.
    Several evaluations can share `problems` (from `pick` with the same settings) and `measured` (the baselines of these
    problems). With `votes`, each sample has its canonical answer, so that `evals.votes` can count votes.

    Raises ConfigError if `votes` is set and the task has no canonical answers. Raises RorqualError if the generator does not
    return `params.n` samples for each request.
    """
    if isinstance(task, str):
        task = load_task(task)
    if votes:
        check_votes(task)
    if problems is None:
        problems = pick(task, split, count, seed, per_family)
    requests = [Request(problem.messages, seeded(params, problem.key), thinking) for problem in problems]
    start = time.monotonic()
    answers = generator.generate(requests, progress=progress)
    seconds = time.monotonic() - start
    if len(answers) != len(problems) or any(len(group) != params.n for group in answers):
        raise RorqualError(
            f"expected {params.n} samples for each of {len(problems)} problems, got {sum(map(len, answers))} in all",
            where=f"task {task.name}",
            remedy="The generator must return n samples for each request, in order.",
        )
    usage: Counter[str] = Counter()
    samples = []
    for problem, group in zip(problems, answers, strict=True):
        for completion in group:
            samples.append(_sample(task, problem, completion, votes))
            usage.update(completion.usage)
    return Evaluation(
        task=task.name,
        model=model,
        split=split,
        seed=seed,
        count=count,
        per_family=per_family,
        thinking=thinking,
        params=params,
        samples=tuple(samples),
        baselines=baselines(task, problems, seed) if measured is None else measured,
        versions={problem.family: problem.version for problem in problems},
        usage=dict(usage),
        seconds=seconds,
    )


def seeded(params: SamplingParams, key: str) -> SamplingParams:
    """Return `params` with a seed derived from `params.seed` and a problem's key."""
    digest = hashlib.sha256(f"{params.seed}:{key}".encode()).digest()
    return replace(params, seed=int.from_bytes(digest[:4], "big") >> 1)


def check_votes(task: Task) -> None:
    """Raise ConfigError if the task does not define `canonical_answer`, so that votes cannot be counted."""
    if type(task).canonical_answer is Task.canonical_answer:
        raise ConfigError(
            f"votes cannot be counted, because task '{task.name}' does not say which replies give the same answer",
            where="votes",
            remedy="Use samples= instead, or define `canonical_answer` in the task.",
        )


def _sample(task: Task, problem: Problem, completion: Completion, votes: bool) -> GradedSample:
    thought = completion.reasoning is not None and completion.reasoning.strip() != ""
    tokens = len(completion.token_ids) or completion.usage.get("completion_tokens", 0)
    return GradedSample(
        key=problem.key,
        family=problem.family,
        level=problem.level,
        prompt=problem.prompt,
        answer=problem.answer,
        reply=completion.text,
        reasoning=completion.reasoning,
        verdict=Verdict.UNGRADED if completion.error else safe_grade(task, problem, completion.text),
        tokens=tokens,
        thinking_tokens=thinking_tokens(completion, tokens) if thought else 0,
        thought=thought,
        truncated=completion.finish_reason == "length",
        error=completion.error,
        answered=task.canonical_answer(problem, completion.text) if votes and not completion.error else None,
        logprob=sum(completion.logprobs) / len(completion.logprobs) if completion.logprobs else None,
    )


def thinking_tokens(completion: Completion, tokens: int) -> int:
    """Return the number of tokens of `completion` before `</think>`.

    The generator may report the number of thinking tokens as `usage["reasoning_tokens"]`. Otherwise, the number is
    estimated, because evaluations have no tokenizer. The estimate is `tokens` times the fraction of characters before
    `</think>`, rounded. It is exact for a character tokenizer, and if the whole completion is thinking.
    """
    counted = completion.usage.get("reasoning_tokens")
    if counted is not None:
        return counted
    reasoning = len(completion.reasoning or "")
    written = reasoning + len(completion.text)
    return round(tokens * reasoning / written) if written else 0
