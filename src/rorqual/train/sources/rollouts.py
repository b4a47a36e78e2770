"""Rollouts: the model's own answers to problems, graded, as groups with advantages (GRPO)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rorqual.core.errors import DataError
from rorqual.core.records import Thinking
from rorqual.data.pack import Packed, Sample, pack
from rorqual.engine.engine import Engine
from rorqual.engine.request import Completion, Request, SamplingParams
from rorqual.tasks.base import Problem, Verdict
from rorqual.tasks.find import load_task, safe_grade
from rorqual.train.batch import TrainBatch
from rorqual.train.sources.base import Materials, Source, SourceConfig, Step
from rorqual.train.sources.worked import opening, repeat

GOLD_PROBE = 256


class RolloutConfig(SourceConfig):
    """`problems` a step, `samples` (the group's size) of each. `std`: divide advantages by the group's deviation (R1).

    `data`: the file or folder of a task that reads files. `minibatches`: updates a step.
    `row`: tokens in a training row; answers are at most what it leaves the prompt.
    """

    kind: Literal["rollouts"] = "rollouts"
    task: str
    data: str = ""
    options: dict[str, Any] = {}
    problems: int = Field(32, ge=1)
    samples: int = Field(12, ge=2)
    temperature: float = Field(1.0, gt=0)
    max_tokens: int = Field(96, ge=1)
    thinking: Thinking = "auto"
    std: bool = True
    minibatches: int = Field(2, ge=1)
    row: int = Field(128, ge=8)

    def build(self, materials: Materials) -> Source:
        return Rollouts(self, materials)


@dataclass(frozen=True)
class Scored:
    """A completion with its verdict and advantage."""

    completion: Completion
    verdict: Verdict
    advantage: float


class Rollouts(Source):
    """Samples with the trained model itself: the engine holds the same tensors, so its weights are never old."""

    def __init__(self, config: RolloutConfig, materials: Materials) -> None:
        self.config, self.chat, self.seed = config, materials.chat, materials.seed
        self.task = load_task(config.task, data=Path(config.data) if config.data else None, options=config.options)
        self.engine = Engine(materials.model, materials.tokenizer, materials.chat, threads=materials.threads)
        probe = opening(self.task, self.seed, GOLD_PROBE)
        longest = max(len(self.chat.prompt(p.messages, config.thinking)) for p in probe)
        if longest + config.max_tokens > config.row:
            raise DataError(
                f"a prompt of {longest} tokens and an answer of {config.max_tokens} do not fit a row of {config.row}",
                where="row",
                remedy=f"Set row={longest + config.max_tokens} or a smaller max_tokens.",
            )

    def step(self, step: int) -> Step:
        c = self.config
        problems = list(islice(repeat(self.task, self.seed * 1_000_003 + step), c.problems))
        seeds = np.random.default_rng([self.seed, step]).integers(0, 2**31, size=len(problems)).tolist()
        requests = [
            Request(
                p.messages,
                SamplingParams(max_tokens=c.max_tokens, temperature=c.temperature, seed=seed, n=c.samples),
                c.thinking,
            )
            for p, seed in zip(problems, seeds)
        ]
        groups = [self._score(p, got) for p, got in zip(problems, self.engine.generate(requests))]
        learn = [one for group in groups for one in group if one.advantage != 0.0]
        metrics = measure(problems, groups, self.chat.tokenizer.end_think)
        notes = (
            []
            if learn
            else [f"step {step + 1}: every group had one reward only; nothing to learn from, weights unchanged"]
        )
        order = np.random.default_rng([self.seed, step, 1]).permutation(len(learn)).tolist()
        parts = np.array_split(np.asarray(order), c.minibatches) if learn else []
        batches = [self._batch([learn[i] for i in part]) for part in parts if len(part)]
        rest = [one for group in groups for one in group if one.advantage == 0.0]
        unlearned = [self._batch(rest)] if rest else []
        return Step(batches, metrics, fresh=True, unlearned=unlearned, notes=notes)

    def _score(self, problem: Problem, completions: list[Completion]) -> list[Scored]:
        """Advantage = (reward - group mean) / group deviation (R1 eq. 3); ungraded samples are left out of the group."""
        verdicts = [
            safe_grade(self.task, problem, c.text) if c.finish_reason == "stop" else Verdict.WRONG for c in completions
        ]
        graded = np.array([v is not Verdict.UNGRADED for v in verdicts])
        rewards = np.array([float(v is Verdict.RIGHT) for v in verdicts])
        advantages = np.zeros(len(rewards))
        if graded.any():
            advantages[graded] = rewards[graded] - rewards[graded].mean()
            deviation = rewards[graded].std()
            if self.config.std and deviation > 0:
                advantages[graded] /= deviation
        return [Scored(c, v, float(a)) for c, v, a in zip(completions, verdicts, advantages)]

    def _batch(self, scored: list[Scored]) -> TrainBatch:
        samples = [
            Sample(
                [*s.completion.prompt_ids, *s.completion.token_ids],
                [False] * len(s.completion.prompt_ids) + [True] * len(s.completion.token_ids),
            )
            for s in scored
        ]
        return lay_beside(pack(samples, self.config.row, pad=self.chat.tokenizer.pad), scored)


def lay_beside(packed: Packed, scored: list[Scored]) -> TrainBatch:
    """The packed rows with, on the same positions, advantages, the sampler's log-probabilities and its expert choices."""
    batch = TrainBatch.from_packed(packed.batch)
    shape = batch.tokens.shape
    advantages, logprobs, lengths = (torch.zeros(shape) for _ in range(3))
    experts = scored[0].completion.experts
    replay: Tensor | None = None
    if experts is not None:
        replay = torch.full((*shape, *experts.shape[1:]), -1)  # -1: padding and last tokens choose for themselves
    for (row, start, length), one in zip(packed.places, scored, strict=True):
        c = one.completion
        first = start + len(c.prompt_ids) - 1  # the position that predicts the first sampled token
        here = slice(first, start + length - 1)
        advantages[row, here] = one.advantage
        lengths[row, here] = len(c.token_ids)
        logprobs[row, here] = torch.tensor(c.logprobs)
        if replay is not None:
            replay[row, start : start + length - 1] = torch.as_tensor(np.asarray(c.experts, dtype=np.int64))
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
    )


def measure(problems: list[Problem], groups: list[list[Scored]], end_think: int) -> dict[str, Any]:
    """What a step's rollouts say: reward, groups without signal, how often and how long it thought, and how right it then was."""
    every = [s for group in groups for s in group]
    thought = [s for s in every if s.completion.reasoning]
    right = [s for s in every if s.verdict is Verdict.RIGHT]
    at_once = [s for s in every if not s.completion.reasoning]
    levels = sorted({(p.family, p.level) for p in problems})
    by_level: dict[str, float] = {}
    for family, level in levels:
        mine = [s for p, group in zip(problems, groups) for s in group if (p.family, p.level) == (family, level)]
        by_level[f"reward/{family}/{level}"] = share(mine)
    return {
        "reward": share(every),
        "groups_total": len(groups),
        "groups_equal": sum(all(s.advantage == 0.0 for s in group) for group in groups),
        "groups_all_right": sum(all(s.verdict is Verdict.RIGHT for s in group) for group in groups),
        "ungraded": sum(s.verdict is Verdict.UNGRADED for s in every),
        "truncated": sum(s.completion.finish_reason == "length" for s in every),
        "sampled_tokens": sum(len(s.completion.token_ids) for s in every),
        "think_share": len(thought) / len(every),
        "think_length": float(np.mean([thinking_length(s.completion, end_think) for s in thought])) if thought else 0.0,
        "reply_length": float(np.mean([len(s.completion.token_ids) for s in every])),
        "right_when_thinking": share(thought),
        "right_at_once": share(at_once),
        "right": len(right),
    } | by_level


def thinking_length(completion: Completion, end_think: int) -> int:
    """Tokens before `</think>`; all of them where the answer was cut off while it thought."""
    ids = completion.token_ids
    return ids.index(end_think) if end_think in ids else len(ids)


def share(scored: list[Scored]) -> float:
    """Share of right ones among those graded; 0 of none."""
    graded = [s for s in scored if s.verdict is not Verdict.UNGRADED]
    return sum(s.verdict is Verdict.RIGHT for s in graded) / len(graded) if graded else 0.0
