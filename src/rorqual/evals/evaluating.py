"""Evaluate a model on a task: choose problems, generate answers, grade the answers, and return every graded sample."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from rorqual.core.config import parse_config
from rorqual.core.errors import ConfigError, DataError, RorqualError
from rorqual.core.records import Message, StopWhen, Thinking
from rorqual.engine.request import Completion, Generator, Request, SamplingParams
from rorqual.engine.seeds import sample_seed
from rorqual.evals.baselines import baseline_accuracies
from rorqual.evals.evaluation import ALL, Evaluation, GradedSample
from rorqual.evals.votes import StopRule, stop_rule
from rorqual.tasks.find import check_splits, load_task, safe_grade, safe_problems
from rorqual.tasks.task import Problem, Split, Task, Verdict

GREEDY = SamplingParams()
CHECK = "Check your answer. If it is wrong, give the right one."
"""The message that asks a model to refine its reply."""
PATIENCE = 20
"""Factor of `_max_idle_draws`, the number of consecutive unused draws after which `pick_problems` stops."""


def pick_problems(task: Task, split: Split, count: int, seed: int, per_family: bool) -> list[Problem]:
    """Return the evaluation problems: the same arguments give the same problems, and no key occurs twice.

    With `per_family`, return `count` problems of each stratum (family, level), otherwise `count` problems in total. A task
    may generate problems endlessly, and its strata are not known in advance. Drawing therefore stops after many consecutive
    unused draws. A draw is unused if its problem is already chosen, or if its stratum already has `count` problems. A stratum
    is unfinished while it has fewer than `count` problems. If an unfinished stratum is rare, more consecutive unused draws are
    allowed. If drawing stops before a stratum has `count` problems, all its distinct drawn problems are returned.

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
            idle, patience = 0, _max_idle_draws(taken, count, drawn)
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


def _max_idle_draws(taken: Counter[tuple[str, str]], count: int, drawn: int) -> int:
    """Return after how many consecutive unused draws `pick_problems` stops: `PATIENCE` times the largest of 5, the number of
    strata drawn so far, and the mean number of draws per problem of the rarest unfinished stratum."""
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
    stop_when: StopWhen = "never",
    refine: int = 0,
    system: str = "",
) -> Evaluation:
    """Answer the problems that `pick_problems` returns, grade each reply, and return all samples.

    `task` is a task object or a task name such as `families:add`.

    `params.n` is the number of samples per problem. The seed of a problem is derived from `params.seed` and the
    problem's key, so an answer does not depend on the other problems in the evaluation. `model` is the name of the model in
    tables. Several evaluations can share `problems` (from `pick_problems` with the same settings) and `measured` (the baselines
    of these problems). With `votes`, the canonical answer of each sample is stored, so that `evals.votes` can count votes.

    With `stop_when`, the samples of a problem are generated one after another, until the rule `stop_when` holds or there are
    `params.n` samples. The samples of a problem equal the first samples of an evaluation without `stop_when`. The model is
    asked `refine` times to check its reply, each time in the same conversation. A sample's earlier replies are in
    `GradedSample.earlier`. `system` is the system message, if any.

    Raises TaskError if a user's task has the same problems in its train and test split.
    Raises ConfigError, before any reply, for an invalid argument, or if `votes` or `stop_when` is set and the task has no
    canonical answers. Raises DataError if `problems` is empty. Raises RorqualError if the generator does not return all samples
    of each request.
    """
    if isinstance(task, str):
        task = load_task(task)
    settings = {
        "task": task.name, "model": model, "split": split, "seed": seed, "count": count, "per_family": per_family,
        "thinking": thinking, "params": params, "stop_when": stop_when, "system": system, "baselines": measured or {},
    }  # fmt: skip
    evaluation = parse_config(Evaluation, {**settings, "samples": ()}, where="evaluate")
    if problems is not None and not problems:
        raise DataError("problems is empty", where="evaluate", remedy="Give problems, or leave out `problems`.")
    if votes or stop_when != "never":
        check_votes_possible(task)
        votes = True
    if problems is None:
        check_splits(task, seed)
        problems = pick_problems(task, split, count, seed, per_family)
    opening = (Message("system", system),) if system else ()
    requests = [
        Request((*opening, *problem.messages), with_problem_seed(params, problem.key), thinking) for problem in problems
    ]
    sampler = _Sampler(generator, task, problems, requests, votes, progress, rounds=1 + refine)
    start = time.monotonic()
    groups = sampler.all_samples() if stop_when == "never" else sampler.sample_until(stop_rule(stop_when, params.n))
    for _ in range(refine):
        groups = sampler.refine_samples(groups)
    seconds = time.monotonic() - start
    results = {
        "samples": tuple(sample for group in groups for sample in group),
        "baselines": baseline_accuracies(task, problems, seed) if measured is None else measured,
        "versions": {problem.family: problem.version for problem in problems},
        "usage": dict(sampler.usage),
        "seconds": seconds,
    }
    return evaluation.model_copy(update=results)


class _Sampler:
    """Generates and grades the samples of an evaluation, and sums the token counts that the generator reports.

    `rounds` is the number of replies per sample: 1 + `refine`. `progress` counts the samples of all rounds. If sampling may stop early,
    the total passed to `progress` is the largest number of samples that is still possible.
    """

    def __init__(
        self,
        generator: Generator,
        task: Task,
        problems: Sequence[Problem],
        requests: Sequence[Request],
        votes: bool,
        progress: Callable[[int, int], None] | None,
        *,
        rounds: int,
    ) -> None:
        self.generator, self.task, self.problems, self.requests = generator, task, problems, requests
        self.votes, self.progress, self.rounds = votes, progress, rounds
        self.most = requests[0].params.n
        self.usage: Counter[str] = Counter()
        self._done = 0

    def all_samples(self) -> list[list[GradedSample]]:
        """Generate and return all samples of each problem."""
        return self._generate_and_grade(
            range(len(self.problems)), self.requests, len(self.problems) * self.most * self.rounds
        )

    def sample_until(self, sure: StopRule) -> list[list[GradedSample]]:
        """Generate the samples of each problem, up to the first sample at which `sure` holds, and return the samples."""
        groups: list[list[GradedSample]] = [[] for _ in self.problems]
        unsure = list(range(len(groups)))
        for sample in range(self.most):
            wave = [_request_for_one_sample(self.requests[number], sample) for number in unsure]
            largest = (self._done + len(unsure) * (self.most - sample)) * self.rounds
            for number, group in zip(unsure, self._generate_and_grade(unsure, wave, largest), strict=True):
                groups[number] += group
            unsure = [
                number
                for number in unsure
                if not groups[number][-1].error and not sure([one.answered for one in groups[number]])
            ]
            if not unsure:
                break
        return groups

    def refine_samples(self, groups: Sequence[Sequence[GradedSample]]) -> list[list[GradedSample]]:
        """Return the samples after one more round, in which the model is asked to check each reply."""
        numbers = [number for number, group in enumerate(groups) for _ in group]
        before = [sample for group in groups for sample in group]
        places = [place for group in groups for place in range(len(group))]
        wave = []
        for number, place, sample in zip(numbers, places, before, strict=True):
            request = _request_for_one_sample(self.requests[number], place)
            request = replace(request, params=with_problem_seed(request.params, f"round {1 + len(sample.earlier)}"))
            talk = [*request.messages]
            for reply in (*sample.earlier, sample):
                talk += [Message("assistant", reply.reply, reasoning=reply.reasoning), Message("user", CHECK)]
            wave.append(replace(request, messages=tuple(talk)))
        try:
            found = self._generate_and_grade(numbers, wave, len(before) * self.rounds)
        except DataError as error:
            raise DataError(
                f"a reply cannot be checked: {error.what}",
                where=f"refine, round {1 + len(before[0].earlier)}",
                remedy="A conversation must fit into the model's context. Use fewer rounds, a smaller max_tokens, or a model that was "
                "trained with a larger row.",
            ) from None
        result: list[list[GradedSample]] = [[] for _ in groups]
        for number, sample, [new] in zip(numbers, before, found, strict=True):
            alone = sample.model_copy(update={"earlier": ()})
            result[number].append(new.model_copy(update={"earlier": (*sample.earlier, alone)}))
        return result

    def _generate_and_grade(
        self, numbers: Sequence[int], requests: Sequence[Request], total: int
    ) -> list[list[GradedSample]]:
        """Generate and grade the samples of the requests. Request i belongs to problem `numbers[i]`."""
        before = self._done
        show = self.progress
        answers = self.generator.generate(
            requests, progress=None if show is None else lambda done, _: show(before + done, total)
        )
        wanted = [request.params.n for request in requests]
        if list(map(len, answers)) != wanted:
            raise RorqualError(
                f"expected {sum(wanted)} samples of {len(requests)} requests, got {sum(map(len, answers))}",
                where=f"task {self.task.name}",
                remedy="The generator must return n samples for each request, in order.",
            )
        self._done += sum(wanted)
        for completion in (completion for group in answers for completion in group):
            self.usage.update(completion.usage)
        return [
            [_grade_completion(self.task, self.problems[number], completion, self.votes) for completion in group]
            for number, group in zip(numbers, answers, strict=True)
        ]


def _request_for_one_sample(request: Request, sample: int) -> Request:
    """Return the request that generates only sample number `sample` of `request`."""
    params = request.params
    return replace(request, params=replace(params, n=1, seed=sample_seed(params.seed, sample)))


def with_problem_seed(params: SamplingParams, key: str) -> SamplingParams:
    """Return `params` with a seed derived from `params.seed` and a problem's key."""
    digest = hashlib.sha256(f"{params.seed}:{key}".encode()).digest()
    return replace(params, seed=int.from_bytes(digest[:4], "big") >> 1)


def check_votes_possible(task: Task) -> None:
    """Raise ConfigError if the task does not define `canonical_answer`, so that votes cannot be counted."""
    if type(task).canonical_answer is Task.canonical_answer:
        raise ConfigError(
            f"votes cannot be counted, because task '{task.name}' does not say which replies give the same answer",
            where="votes",
            remedy="Use samples= instead, or define `canonical_answer` in the task.",
        )


def _grade_completion(task: Task, problem: Problem, completion: Completion, votes: bool) -> GradedSample:
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
        last=Verdict.UNGRADED if completion.error else safe_grade(task, problem, completion.text, read="last"),
        unmarked=not completion.error and not task.is_marked(problem, completion.text),
        prompt_tokens=completion.usage.get("prompt_tokens", 0),
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

    The generator may report the number of thinking tokens as `usage["reasoning_tokens"]`. If the generator does not report this
    number, or reports 0, the number is estimated, because evaluations have no tokenizer. The estimate is `tokens` times the fraction of
    characters before `</think>`, rounded. The estimate is exact if each token is one character, or if the whole completion is
    thinking.
    """
    if counted := completion.usage.get("reasoning_tokens"):
        return counted
    reasoning = len(completion.reasoning or "")
    written = reasoning + len(completion.text)
    return round(tokens * reasoning / written) if written else 0
