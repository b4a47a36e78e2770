"""Base classes of the sources that sample answers from the trained model with the run's rollout engine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from rorqual.core.config import Count, Natural, RowLength, Temperature
from rorqual.core.errors import ConfigError, DataError
from rorqual.core.records import Message, Thinking
from rorqual.dist.ranks import current_ranks
from rorqual.engine.engine import Engine
from rorqual.engine.request import Completion, Request, SamplingParams
from rorqual.engine.rollout_engine import InlineRolloutEngine, RolloutEngine, gather_completions
from rorqual.ops.backends import REFERENCE, TORCH, TORCH_INVARIANT, Backend
from rorqual.tasks.find import safe_grade
from rorqual.tasks.task import Problem, Task, Verdict
from rorqual.train.sources.source import Source, SourceInputs
from rorqual.train.sources.worked import PROBE, TaskSourceConfig, example_prompts, first_problems


class SampledSourceConfig(TaskSourceConfig):
    """Settings of a source of sampled answers. A step has `problems` prompts with `samples` answers each.

    `minibatches` is the number of optimizer updates per step. `row` is the number of tokens per training row. A prompt and its
    answer must fit into a row.

    `max_age` limits the policy age: the trainer's policy version minus the version that sampled the answer. The check that
    sampler and trainer agree skips answers of policy age 1 or more.
    """

    problems: Count = 32
    samples: Count = 4
    temperature: Temperature = 1.0
    max_tokens: Count = 96
    thinking: Thinking = "auto"
    minibatches: Count = 2
    row: RowLength = 128
    max_age: Natural = 0

    @property
    def uses_rollout_engine(self) -> bool:
        return True

    @property
    def efforts(self) -> tuple[int | None, ...]:
        """The reasoning efforts at which each problem is sampled. The effort None means that the prompt sets no effort."""
        return (None,)


@dataclass(frozen=True)
class ScoredCompletion:
    """A graded completion. `age` is the trainer's policy version minus the version that sampled the completion. `effort` is the
    reasoning effort that the prompt sets, or None. `score` is the task's reward, by default 1 for a right completion, else 0."""

    completion: Completion
    verdict: Verdict
    advantage: float
    age: int = 0
    effort: int | None = None
    score: float | None = None

    @property
    def reward(self) -> float:
        """The reward without penalties."""
        return float(self.verdict is Verdict.RIGHT) if self.score is None else self.score

    @property
    def cut_off(self) -> bool:
        """Whether the completion was truncated at `max_tokens`."""
        return self.completion.finish_reason == "length"


class SampledSource(Source):
    """A source of answers sampled from the trained model. `params` are the sampling parameters of the source's requests.

    With `record_kept`, the samples must contain the tokens that top-p and top-k allowed.
    """

    def __init__(self, config: SampledSourceConfig, materials: SourceInputs, *, record_kept: bool = False) -> None:
        self.chat, self.seed, self.thinking = materials.chat, materials.seed, config.thinking
        self.minibatches = config.minibatches
        self.task = config.load()
        self.versions = self.task.versions
        self.params = SamplingParams(max_tokens=config.max_tokens, temperature=config.temperature, n=config.samples)
        self.sampler = RolloutSampler(materials, max_age=config.max_age, record_kept=record_kept)
        probe = first_problems(self.task, self.seed, PROBE)
        self.prompts = [] if config.data else example_prompts(probe)
        asked = [prompt_of(problem, effort) for problem in probe for effort in config.efforts]
        longest = max(len(self.chat.prompt(messages, config.thinking)) for messages in asked)
        check_row_length(longest, config.max_tokens, config.row)

    def sample(self, prompts: Sequence[tuple[Message, ...]], step: int, draw: int = 0) -> list[list[Completion]]:
        """Sample answers to each prompt. The run's seed, `step` and `draw` determine the seed of each prompt."""
        generator = np.random.default_rng([self.seed, step, 1 + draw] if draw else [self.seed, step])
        seeds = generator.integers(0, 2**31, size=len(prompts)).tolist()
        requests = [Request(p, replace(self.params, seed=seed), self.thinking) for p, seed in zip(prompts, seeds)]
        return self.sampler.generate(requests)

    def split_into_updates(self, scored: Sequence[ScoredCompletion], step: int) -> list[list[ScoredCompletion]]:
        """Divide the answers of a step among the step's optimizer updates, in random order. Updates without an answer are left out."""
        order = np.random.default_rng([self.seed, step, 1]).permutation(len(scored))
        return [[scored[i] for i in part] for part in np.array_split(order, self.minibatches) if len(part)]


def prompt_of(problem: Problem, effort: int | None) -> tuple[Message, ...]:
    """Return the prompt of a problem. If `effort` is given, the prompt begins with `effort_message(effort)`."""
    return problem.messages if effort is None else (effort_message(effort), *problem.messages)


def effort_message(effort: int) -> Message:
    """Return the system message that sets the reasoning effort."""
    return Message("system", f"Reasoning effort: {effort}")


def check_row_length(longest: int, max_tokens: int, row: int) -> None:
    """Raise DataError if a prompt of `longest` tokens and an answer of `max_tokens` tokens do not fit into a row."""
    if longest + max_tokens > row:
        raise DataError(
            f"a prompt of {longest} tokens and an answer of {max_tokens} tokens do not fit into a row of {row}",
            where="row",
            remedy=f"Set row={longest + max_tokens} or a smaller max_tokens.",
        )


def grade_completion(task: Task, problem: Problem, completion: Completion) -> Verdict:
    """Grade an answer with the task's grader. A truncated answer counts as wrong."""
    return safe_grade(task, problem, completion.text) if completion.finish_reason == "stop" else Verdict.WRONG


def _sampler_backend(ops: Backend) -> str:
    """Return the name of the sampler's backend: the trainer's backend, or `torch-invariant` if the trainer uses `reference` or `torch`."""
    return TORCH_INVARIANT.name if ops.name in (REFERENCE.name, TORCH.name) else ops.name


class RolloutSampler:
    """A client of the rollout engine. The client sends each step's weights to the engine and checks the samples that the engine
    returns.

    Several processes each sample their share of the requests. Only the first process uses a remote engine.

    A sample may be at most `max_age` policy versions old. With `record_kept`, each sample must
    contain the tokens that top-p and top-k allowed at each position.
    """

    def __init__(self, materials: SourceInputs, *, max_age: int = 0, record_kept: bool = False) -> None:
        self.model, self.max_age, self.record_kept = materials.model, max_age, record_kept
        self.ranks, self.shared = current_ranks(), materials.rollout_engine is not None
        self.engine: RolloutEngine = materials.rollout_engine or InlineRolloutEngine(
            Engine.of(
                materials.model,
                materials.tokenizer,
                materials.chat,
                threads=materials.threads,
                record_kept=record_kept,
                backend=_sampler_backend(materials.model.ops),
            )
        )
        self.version = self.ranks.gather([self.engine.version])[0]
        """The policy version of the trainer's current weights."""

    def send_weights(self) -> None:
        """Increment the policy version and send the trainer's current weights to the engine."""
        self.version += 1
        if self.ranks.first or not self.shared:
            self.engine.update(self.model, self.version)

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Sample completions for each request.

        Raises ConfigError if training needs expert choices or `kept` (the tokens that top-p and top-k allowed), and a
        completion has none.
        """
        if self.ranks.count > 1:
            self.ranks.agree({"the prompts": hashlib.sha256(repr(requests).encode()).hexdigest()})
        ask = partial(gather_completions, self.engine, version=self.version, max_age=self.max_age)
        if self.shared:
            rows = self.ranks.gather(ask(requests) if self.ranks.first else [])
        else:
            rows = self.ranks.map(ask, requests)
        routes = any(ffn.experts_per_token() for ffn in self.model.config.ffns)
        for completion in (completion for row in rows for completion in row):
            for name, missing in (
                ("experts", routes and completion.experts is None),
                ("record of allowed tokens", self.record_kept and completion.kept is None),
            ):
                if missing:
                    raise ConfigError(
                        f"the samples have no {name}, but training needs this data",
                        where="rollout engine",
                        remedy="Configure the engine to record this data. With rorqual serve, set record_kept=true to record allowed tokens.",
                    )
        return rows

    def age(self, completion: Completion) -> int:
        """Return the policy age of a completion: the trainer's policy version minus the version that sampled it."""
        return self.version - completion.policy_version
