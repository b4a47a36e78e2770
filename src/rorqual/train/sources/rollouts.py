"""The rollouts of GRPO: groups of sampled answers to problems, with grades and advantages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from random import Random
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from rorqual.core.config import MOST, Config, Count, Natural, NonNegative, Part, Positive, Share
from rorqual.data.chat import ChatFormat
from rorqual.data.pack import PackedSamples, TrainingSample, pack
from rorqual.dist.ranks import current_ranks
from rorqual.engine.request import Completion
from rorqual.ops.moe import CHOOSE
from rorqual.tasks.task import Problem, Verdict
from rorqual.train.batch import TrainBatch
from rorqual.train.sources.reference import ReferenceModel
from rorqual.train.sources.sampler import (
    SampledSource,
    SampledSourceConfig,
    ScoredCompletion,
    grade_completion,
    prompt_of,
)
from rorqual.train.sources.shaping import group_advantages, overlong_penalty
from rorqual.train.sources.source import Source, SourceInputs, StepBatches
from rorqual.train.sources.worked import endless_problems


class LengthPenaltyConfig(Config):
    """Sample each problem at every reasoning effort in `efforts` (1 to 100). A higher effort has a lower length penalty (see
    `reward`).

    The prompt begins with the system message `effort_message(effort)`. The samples for one problem and one effort form a group.
    """

    efforts: tuple[Count, ...] = Field((50, 75, 100), min_length=1)
    strength: NonNegative = 0.5
    decay: Positive = 25.0
    limit: NonNegative = 0.5
    tokens: Count = 1024

    @model_validator(mode="after")
    def _check_efforts(self) -> Self:
        if len(set(self.efforts)) < len(self.efforts) or max(self.efforts) > 100:
            raise ValueError(f"efforts={list(self.efforts)} must be different numbers from 1 to 100")
        return self

    def reward(self, length: int, effort: int) -> float:
        """Return the length reward of DeepSeek-V4.1-Flash (technical report, effort control) for an answer of `length` tokens.

        The length reward is -min(C_max, k(b) length / L_norm), with k(b) = k_0 exp(-(b - b_min) / tau) for the effort b. At the
        lowest effort b_min, a token costs the most. `strength` is k_0, `decay` tau, `limit` C_max and `tokens` L_norm.
        """
        cost = self.strength * math.exp(-(effort - min(self.efforts)) / self.decay)
        return -min(self.limit, cost * length / self.tokens)


class RolloutConfig(SampledSourceConfig):
    """Train on answers sampled from the model. The `samples` answers to one prompt form a group.

    `std` divides advantages by the group's standard deviation (R1). `trace` is the number of groups per step whose texts
    are stored for `rorqual trace`. The stored groups are the groups with the most varied rewards.

    `top_p` and `top_k` restrict sampling. The trainer normalizes its probabilities over the tokens that top-p and top-k
    allowed (keep sampling mask, V3.2, 2512.02556).

    With `calculator`, the engine writes the results of calculations, and the tokens of these results do not count in the loss.

    `max_num_gen_batches` enables dynamic sampling (DAPO, 2503.14476). With dynamic sampling, a step samples batches of
    `problems` prompts until `problems` groups have both right and wrong answers. A step samples at most `max_num_gen_batches`
    batches. Only groups with both right and wrong answers are trained on. `max_num_gen_batches=1` samples one batch and keeps
    all groups.

    With `overlong_buffer`, answers longer than max_tokens - overlong_buffer tokens are penalized (DAPO's soft
    punishment, eq. 13). The largest penalty for the length of an answer is `overlong_penalty`. DAPO's rewards are 1 and -1, but
    Rorqual's rewards are 1 and
    0. A penalty of 0.5 in Rorqual therefore corresponds to a penalty of 1 in DAPO.

    `length_penalty` trains several reasoning efforts at once (`LengthPenaltyConfig`). With `length_penalty`, a step has
    `problems` groups per effort.

    `mask_truncated` excludes truncated answers from training (DAPO's overlong filtering). Truncated answers still count
    in the mean reward of their group.

    If `random_reward` is above 0, each reward is 1 with this probability, whatever the answer: a control for the gain of RL
    (Shao et al. 2506.10947). The logged rewards still grade the answers.

    `reference` is the run of a reference model. The reference model's log-probabilities are added to the batches for the KL
    term of the loss. With `reference`, groups with equal rewards are trained on too.

    The objective weights answers of policy age 1 or more by importance ratios.
    """

    kind: Literal["rollouts"] = "rollouts"
    samples: int = Field(12, ge=2, le=MOST)
    std: bool = True
    trace: Natural = 4
    top_p: Part = 1.0
    top_k: Natural = 0
    calculator: bool = False
    max_num_gen_batches: Count = 1
    overlong_buffer: Natural = 0
    overlong_penalty: NonNegative = 1.0
    length_penalty: LengthPenaltyConfig | None = None
    mask_truncated: bool = False
    random_reward: Share = 0.0
    reference: str = ""

    @property
    def efforts(self) -> tuple[int | None, ...]:
        return (None,) if self.length_penalty is None else self.length_penalty.efforts

    @model_validator(mode="after")
    def _check_buffer(self) -> Self:
        if self.overlong_buffer > self.max_tokens:
            raise ValueError(f"overlong_buffer={self.overlong_buffer} exceeds max_tokens={self.max_tokens}")
        if self.length_penalty is not None and self.max_num_gen_batches > 1:
            raise ValueError(
                "length_penalty needs max_num_gen_batches=1, because dynamic sampling drops groups that differ in length alone"
            )
        return self

    def provided_batch_fields(self) -> frozenset[str]:
        reference = {"reference_logprobs"} if self.reference else set()
        return frozenset({"advantages", "sampled_logprobs"} | reference)

    def build(self, materials: SourceInputs) -> Source:
        return Rollouts(self, materials)


class Rollouts(SampledSource):
    """A source of graded answers, sampled from the trained model with the run's rollout engine."""

    def __init__(self, config: RolloutConfig, materials: SourceInputs) -> None:
        self.config = config
        record_kept = config.top_p < 1 or config.top_k > 0 or config.calculator
        super().__init__(config, materials, record_kept=record_kept)
        self.params = replace(self.params, top_p=config.top_p, top_k=config.top_k, calculator=config.calculator)
        self.reference: ReferenceModel | None = None
        if config.reference:
            self.reference = ReferenceModel(
                config.reference,
                materials.model,
                materials.tokenizer,
                temperature=config.temperature,
                threads=materials.threads,
            )
            self.frozen_models = {"reference": self.reference.sha256}

    def step(self, step: int) -> StepBatches:
        c = self.config
        self.sampler.send_weights()
        problems, groups = self._sample_groups(step)
        chosen = [g for g in groups if has_right_and_wrong(g)][: c.problems] if c.max_num_gen_batches > 1 else groups
        learn = [one for group in chosen for one in group if self._is_trained_on(one)]
        metrics = rollout_metrics(problems, groups, self.chat) | self._option_metrics(groups, chosen)
        batches = [self._batch(part, learned=True) for part in self.split_into_updates(learn, step)]
        learned = {id(one) for one in learn}
        untrained = [one for group in groups for one in group if id(one) not in learned]
        unlearned = [self._batch(untrained)] if untrained else []
        if self.reference is not None:
            metrics["reference_tokens"] = sum(batch.n_tokens for batch in batches)
        notes = list(self._step_notes(step, learn, groups, chosen))
        trace = trace_records(problems, groups, c.trace, self.chat)
        return StepBatches(batches, metrics, fresh=True, unlearned=unlearned, notes=notes, trace=trace)

    def _sample_groups(self, step: int) -> tuple[list[Problem], list[list[ScoredCompletion]]]:
        """Draw problems and sample answers: once, or until enough groups have both right and wrong answers (DAPO's dynamic sampling)."""
        c = self.config
        stream = endless_problems(self.task, self.seed * 1_000_003 + step)
        problems: list[Problem] = []
        groups: list[list[ScoredCompletion]] = []
        for draw in range(c.max_num_gen_batches):
            fresh = [(problem, effort) for problem in islice(stream, c.problems) for effort in c.efforts]
            problems += [problem for problem, _ in fresh]
            completions = self.sample([prompt_of(*one) for one in fresh], step, draw)
            groups += current_ranks().map(
                lambda share: [self._score(problem, effort, found) for (problem, effort), found in share],
                [*zip(fresh, completions, strict=True)],
            )
            if sum(map(has_right_and_wrong, groups)) >= c.problems:
                break
        return problems, groups

    def _is_trained_on(self, one: ScoredCompletion) -> bool:
        if one.verdict is Verdict.UNGRADED or (self.config.mask_truncated and one.cut_off):
            return False
        return one.advantage != 0.0 or self.reference is not None

    def _option_metrics(
        self, groups: list[list[ScoredCompletion]], chosen: list[list[ScoredCompletion]]
    ) -> dict[str, Any]:
        """Return the metrics of dynamic sampling and of the length penalty, if the run uses dynamic sampling or the length
        penalty."""
        c = self.config
        every = [one.completion for group in groups for one in group]
        out: dict[str, Any] = {}
        if c.max_num_gen_batches > 1:
            out |= {"gen_batches": len(groups) // c.problems, "groups_trained": len(chosen)}
        if c.overlong_buffer:
            lengths = [len(one.token_ids) for one in every]
            out["overlong_penalty"] = float(np.mean([self._penalty(length, None) for length in lengths]))
        for effort in c.efforts if c.length_penalty is not None else ():
            own = [one for group in groups for one in group if one.effort == effort]
            out[f"reward/effort {effort}"] = mean_reward(own)
            out[f"reply_length/effort {effort}"] = float(np.mean([len(one.completion.token_ids) for one in own]))
        return out

    def _step_notes(
        self,
        step: int,
        learn: list[ScoredCompletion],
        groups: list[list[ScoredCompletion]],
        chosen: list[list[ScoredCompletion]],
    ) -> Iterable[str]:
        c = self.config
        if not learn:
            yield f"step {step + 1}: every group has equal rewards, so the weights were not updated"
        elif c.max_num_gen_batches > 1 and len(chosen) < c.problems:
            yield (
                f"step {step + 1}: only {len(chosen)} of {len(groups)} groups in {c.max_num_gen_batches} draws have both "
                f"rewards; {c.problems} were requested"
            )

    def _penalty(self, length: int, effort: int | None) -> float:
        c = self.config
        penalty = c.overlong_penalty * overlong_penalty(length, c.max_tokens, c.overlong_buffer)
        if c.length_penalty is not None and effort is not None:
            penalty += c.length_penalty.reward(length, effort)
        return penalty

    def _score(self, problem: Problem, effort: int | None, completions: list[Completion]) -> list[ScoredCompletion]:
        """Grade the answers of a group and compute their advantages (`group_advantages`)."""
        verdicts = [grade_completion(self.task, problem, c) for c in completions]
        graded = [v is not Verdict.UNGRADED for v in verdicts]
        penalties = [self._penalty(len(c.token_ids), effort) for c in completions]
        chance, draws = self.config.random_reward, Random(f"{self.seed} {problem.key} {effort}")
        scores = [
            self.task.reward(problem, c.text, v) if c.finish_reason == "stop" else 0.0
            for c, v in zip(completions, verdicts)
        ]
        given = [draws.random() < chance if chance else score for score in scores]
        rewards = [float(one) + penalty for one, penalty in zip(given, penalties)]
        advantages = group_advantages(rewards, graded, std=self.config.std)
        ages = map(self.sampler.age, completions)
        return [
            ScoredCompletion(c, v, float(a), age, effort, score)
            for c, v, a, age, score in zip(completions, verdicts, advantages, ages, scores)
        ]

    def _batch(self, scored: list[ScoredCompletion], *, learned: bool = False) -> TrainBatch:
        batch = batch_of(scored, self.config.row, self.chat.pad)
        if self.reference is not None and learned:
            batch = replace(batch, reference_logprobs=self.reference.logprobs(batch))
        return batch


def has_right_and_wrong(group: list[ScoredCompletion]) -> bool:
    """Return whether the graded answers of a group have different rewards, such as right and wrong answers."""
    return len({one.reward for one in group if one.verdict is not Verdict.UNGRADED}) > 1


def batch_of(scored: list[ScoredCompletion], width: int, pad: int) -> TrainBatch:
    """Pack samples into a training batch with rows of `width` tokens. The loss covers the sampled tokens."""
    samples = [
        TrainingSample(
            [*s.completion.prompt_ids, *s.completion.token_ids],
            [False] * len(s.completion.prompt_ids) + [True] * len(s.completion.token_ids),
        )
        for s in scored
    ]
    return pack_rollouts(pack(samples, width, pad=pad), scored)


def pack_rollouts(packed: PackedSamples, scored: list[ScoredCompletion]) -> TrainBatch:
    """Build a training batch from packed rows.

    For each sample, the batch includes the advantage, the log-probabilities, the expert choices and `kept` (the tokens
    that top-p and top-k allowed).
    """
    batch = TrainBatch.from_packed(packed.batch)
    shape = batch.tokens.shape
    advantages, logprobs, lengths = (torch.zeros(shape) for _ in range(3))
    experts = scored[0].completion.experts
    replay: Tensor | None = None
    if experts is not None:
        # Padding and the last token of each sample have no recorded experts. There, the routers choose.
        replay = torch.full((*shape, *experts.shape[1:]), CHOOSE)
    sets = scored[0].completion.kept
    kept = None if sets is None else torch.full((*shape, sets.shape[-1]), 255, dtype=torch.uint8)
    ages = torch.zeros(shape) if any(one.age for one in scored) else None
    for (row, start, length), one in zip(packed.places, scored, strict=True):
        c = one.completion
        first = start + len(c.prompt_ids) - 1  # the position that predicts the first sampled token
        positions = slice(first, start + length - 1)
        advantages[row, positions] = one.advantage
        lengths[row, positions] = len(c.token_ids)
        logprobs[row, positions] = torch.tensor(c.logprobs)
        if replay is not None:
            replay[row, start : start + length - 1] = torch.as_tensor(np.asarray(c.experts, dtype=np.int64))
        if kept is not None:
            kept[row, positions] = torch.as_tensor(np.asarray(c.kept, dtype=np.uint8))
        if ages is not None:
            ages[row, start : start + length] = one.age
    return TrainBatch(
        batch.tokens,
        batch.targets,
        batch.loss_mask,
        batch.segments,
        batch.positions,
        advantages=advantages,
        sampled_logprobs=logprobs,
        lengths=lengths,
        replay=replay,
        kept=kept,
        ages=ages,
    )


def rollout_metrics(problems: list[Problem], groups: list[list[ScoredCompletion]], chat: ChatFormat) -> dict[str, Any]:
    """Return the metrics of a step: rewards, lengths, how often the model thinks, and accuracy with and without
    thinking."""
    every = [s for group in groups for s in group]
    with_thinking = [s for s in every if s.completion.reasoning]
    right = [s for s in every if s.verdict is Verdict.RIGHT]
    without_thinking = [s for s in every if not s.completion.reasoning]
    levels = sorted({(p.family, p.level) for p in problems})
    by_level: dict[str, float] = {}
    for family, level in levels:
        of_level = [s for p, group in zip(problems, groups) for s in group if (p.family, p.level) == (family, level)]
        by_level[f"reward/{family}/{level}"] = mean_reward(of_level)
    return {
        "reward": mean_reward(every),
        "groups_total": len(groups),
        "groups_equal": sum(all(s.advantage == 0.0 for s in group) for group in groups),
        "groups_all_right": sum(all(s.verdict is Verdict.RIGHT for s in group) for group in groups),
        "ungraded": sum(s.verdict is Verdict.UNGRADED for s in every),
        "truncated": sum(s.cut_off for s in every),
        "sampled_tokens": sum(len(s.completion.token_ids) for s in every),
        "think_share": len(with_thinking) / len(every),
        "think_length": float(np.mean([chat.n_thinking_tokens(s.completion.token_ids) for s in with_thinking]))
        if with_thinking
        else 0.0,
        "reply_length": float(np.mean([len(s.completion.token_ids) for s in every])),
        "right_when_thinking": mean_reward(with_thinking),
        "right_at_once": mean_reward(without_thinking),
        "right": len(right),
    } | by_level


def trace_records(
    problems: list[Problem], groups: list[list[ScoredCompletion]], count: int, chat: ChatFormat
) -> list[dict[str, Any]]:
    """Return one record per group for `rollouts.jsonl`, with the verdict, advantage and lengths of each sample.

    The records of the `count` groups with the most varied rewards also contain the prompt, the gold answer and the
    sampled texts.
    """
    if not count:
        return []
    distances = [abs(mean_reward(group) - 0.5) for group in groups]
    with_texts = set(sorted(range(len(groups)), key=distances.__getitem__)[:count])
    lines = []
    for number, (problem, group) in enumerate(zip(problems, groups)):
        line: dict[str, Any] = {"key": problem.key, "family": problem.family, "level": problem.level}
        line |= {"effort": group[0].effort} if group[0].effort is not None else {}
        line |= {"prompt": problem.prompt, "answer": problem.answer} if number in with_texts else {}
        samples = []
        for s in group:
            c = s.completion
            thinking = chat.n_thinking_tokens(c.token_ids) if c.reasoning else 0
            sample: dict[str, Any] = {"verdict": s.verdict.value, "advantage": s.advantage, "finish": c.finish_reason}
            sample |= {"tokens": len(c.token_ids), "thinking": thinking}
            samples.append(sample | ({"reasoning": c.reasoning, "text": c.text} if number in with_texts else {}))
        lines.append(line | {"samples": samples})
    return lines


def mean_reward(scored: list[ScoredCompletion]) -> float:
    """Return the mean reward of the graded answers, or 0 if no answer was graded."""
    graded = [s for s in scored if s.verdict is not Verdict.UNGRADED]
    return sum(s.reward for s in graded) / len(graded) if graded else 0.0
