"""On-policy distillation: the student samples answers, and the teacher scores every position of these answers.

On-policy distillation is GKD (Agarwal et al. 2306.13649) with only the student's samples, or MiniLLM (Gu et al.
2306.08543) without its sequence-level term. The divergence at each position is computed over the vocabulary. No
gradient flows through sampling, and no reward is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rorqual.core.config import Count, Natural, RowLength, Temperature
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir, Thinking
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.request import Completion, Request, SamplingParams
from rorqual.engine.score import ROWS, next_logprobs
from rorqual.model.account import account
from rorqual.tasks.base import Problem, Verdict
from rorqual.tasks.find import load_task, safe_problems
from rorqual.train.batch import TrainBatch
from rorqual.train.sources.base import Materials, Source, SourceConfig, Step
from rorqual.train.sources.distilled import another_vocabulary
from rorqual.train.sources.reference import frozen
from rorqual.train.sources.rollouts import Scored, batch_of, check_room, graded_as, measure
from rorqual.train.sources.sampler import RolloutSampler
from rorqual.train.sources.worked import opening, repeat

PROBE = 256


class OnPolicyConfig(SourceConfig):
    """Train on answers sampled from the student. A step has `problems` prompts with `samples` answers each.

    `teacher` is the run directory of the teacher. `top_k` keeps the teacher's most likely tokens at each position; 0
    keeps the whole vocabulary. `grade` grades the answers for metrics such as reward; grades do not affect training.
    `minibatches` is the number of optimizer updates per step, and `row` the number of tokens per training row.

    `max_age` limits the policy age: the student's policy version minus the version that sampled the answer. The check that
    sampler and student agree skips answers of age 1 or more. Importance ratios are not needed, because the divergence
    is computed over the vocabulary, not for the sampled token alone.
    """

    kind: Literal["on_policy"] = "on_policy"
    teacher: str
    task: str
    data: str = ""
    options: dict[str, Any] = {}
    problems: Count = 32
    samples: Count = 4
    temperature: Temperature = 1.0
    max_tokens: Count = 96
    thinking: Thinking = "auto"
    top_k: Natural = 0
    grade: bool = True
    minibatches: Count = 2
    row: RowLength = 128
    max_age: Natural = 0

    @property
    def samples_itself(self) -> bool:
        return True

    def build(self, materials: Materials) -> Source:
        return OnPolicy(self, materials)

    def gives(self) -> frozenset[str]:
        return frozenset({"teacher_logprobs", "sampled_logprobs"} | ({"teacher_ids"} if self.top_k else set()))

    def texts(self) -> Iterator[str]:
        task = load_task(self.task, data=Path(self.data) if self.data else None, options=self.options)
        for problem in islice(safe_problems(task, "train", 0), 2000):
            yield f"{problem.prompt} {problem.steps or ''} {problem.answer}"


class OnPolicy(Source):
    """A source of answers sampled from the student and scored by a frozen teacher."""

    def __init__(self, config: OnPolicyConfig, materials: Materials) -> None:
        self.config, self.chat, self.seed = config, materials.chat, materials.seed
        self.task = load_task(config.task, data=Path(config.data) if config.data else None, options=config.options)
        self.versions = self.task.versions
        self.teacher = OnPolicyTeacher(config.teacher, materials, config.row, config.top_k)
        self.sampler = RolloutSampler(materials, max_age=config.max_age)
        probe = opening(self.task, self.seed, PROBE)
        self.prompts = [] if config.data else [problem.prompt for problem in probe]
        check_room(self.chat, [problem.messages for problem in probe], config.thinking, config.max_tokens, config.row)

    def step(self, step: int) -> Step:
        c = self.config
        self.sampler.update()
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
        groups = [
            [Scored(answer, self._verdict(p, answer), 0.0, self.sampler.age(answer)) for answer in completions]
            for p, completions in zip(problems, self.sampler.generate(requests))
        ]
        every = [scored for group in groups for scored in group]
        order = np.random.default_rng([self.seed, step, 1]).permutation(len(every)).tolist()
        parts = np.array_split(np.asarray(order), c.minibatches)
        batches = [self._batch([every[i] for i in part]) for part in parts if len(part)]
        read = sum(batch.n_tokens for batch in batches)
        metrics = {"teacher_tokens": read, "teacher_flops": read * self.teacher.flops}
        return Step(batches, metrics | self._measure(problems, groups), fresh=True)

    def _verdict(self, problem: Problem, completion: Completion) -> Verdict:
        return graded_as(self.task, problem, completion) if self.config.grade else Verdict.UNGRADED

    def _measure(self, problems: list[Problem], groups: list[list[Scored]]) -> dict[str, Any]:
        """Return the metrics of the rollouts, except those of groups. If `grade` is off, also leave out those of
        grades."""
        metrics = measure(problems, groups, self.chat)
        verdicts = () if self.config.grade else ("reward", "right", "ungraded")
        return {name: value for name, value in metrics.items() if not name.startswith(("groups_", *verdicts))}

    def _batch(self, scored: list[Scored]) -> TrainBatch:
        batch = batch_of(scored, self.config.row, self.chat.pad)
        return self.teacher.add_distributions(replace(batch, advantages=None, lengths=None))


class OnPolicyTeacher:
    """A frozen teacher: the newest checkpoint of the run directory `path`, in fp32 on the student's device.

    Raises an error if teacher and student have different vocabularies, or if a row is longer than the teacher's
    context.
    """

    def __init__(self, path: str, materials: Materials, row: int, top_k: int) -> None:
        run, student = RunDir(Path(path)), materials.model
        self.device = str(student.embed_tokens.weight.device)
        self.model = frozen(run, self.device, student.ops)
        config = self.model.config
        tokenizer = Tokenizer.load(run.tokenizer_file)
        if tokenizer != materials.tokenizer or config.vocab_size != student.config.vocab_size:
            raise another_vocabulary(f"teacher {path}", config.vocab_size, student.config.vocab_size)
        if row > config.max_position_embeddings:
            raise ConfigError(
                f"rows have {row} tokens, but the teacher's context is {config.max_position_embeddings}",
                where="source.row",
                remedy=f"Set row={config.max_position_embeddings} or less.",
            )
        if top_k > config.vocab_size:
            raise ConfigError(
                f"top_k={top_k} is more than the vocabulary's {config.vocab_size} tokens",
                where="source.top_k",
                remedy="Use 0 for the whole vocabulary.",
            )
        self.top_k, self.threads = top_k, materials.threads
        self.flops = account(config, context=row).flops

    def add_distributions(self, batch: TrainBatch) -> TrainBatch:
        """Add the teacher's distribution at each trained position of the batch."""
        parts = batch.split(-(-len(batch.tokens) // ROWS))
        with ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            scored = list(pool.map(self._score, parts))
        logprobs = torch.cat([part for part, _ in scored])
        if not self.top_k:
            return replace(batch, teacher_logprobs=logprobs)
        return replace(batch, teacher_logprobs=logprobs, teacher_ids=torch.cat([ids for _, ids in scored]))

    def _score(self, part: TrainBatch) -> tuple[Tensor, Tensor]:
        """Return the teacher's log-probabilities and token ids, both [rows, seq, k]. Untrained positions are 0.

        If `top_k` is 0 (the whole vocabulary), the ids are empty.
        """
        batch = part.to(self.device)
        logprobs = next_logprobs(self.model, batch.tokens, batch.positions, batch.segments, batch.loss_mask)
        ids = logprobs.new_empty(len(logprobs), 0, dtype=torch.long)
        if self.top_k:
            logprobs, ids = logprobs.topk(self.top_k, dim=-1)
        at, shape, device = batch.loss_mask.nonzero(as_tuple=True), batch.tokens.shape, part.tokens.device
        scattered = [x.new_zeros(*shape, x.shape[-1]).index_put(at, x).to(device) for x in (logprobs, ids)]
        return scattered[0], scattered[1]
