"""On-policy distillation: the student samples answers, and the teacher scores every position of these answers.

On-policy distillation is GKD (Agarwal et al. 2306.13649) with only the student's samples, or MiniLLM (Gu et al.
2306.08543) without its sequence-level term. The divergence at each position is computed over the vocabulary. No
gradient flows through sampling, and no reward is needed.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rorqual.core.config import Natural
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.score import next_logprobs
from rorqual.model.account import account
from rorqual.model.adapter import fingerprint
from rorqual.train.batch import TrainBatch
from rorqual.train.sources.distilled import vocabulary_mismatch_error
from rorqual.train.sources.reference import load_frozen, map_rows
from rorqual.train.sources.rollouts import batch_of, rollout_metrics
from rorqual.train.sources.sampler import SampledSource, SampledSourceConfig, ScoredCompletion, grade_completion
from rorqual.train.sources.source import Source, SourceInputs, StepBatches
from rorqual.train.sources.worked import endless_problems


class OnPolicyConfig(SampledSourceConfig):
    """Train on answers sampled from the student.

    `teacher` is the run directory of the teacher. `top_k` is the number of most likely tokens of the teacher that are kept at
    each position. `top_k=0` keeps the whole vocabulary. The answers are graded for metrics such as reward. The grades do not
    affect training.

    Answers of policy age 1 or more need no importance ratios, because the divergence is computed over the whole vocabulary, not
    only for the sampled token.
    """

    kind: Literal["on_policy"] = "on_policy"
    teacher: str
    top_k: Natural = 0

    def build(self, materials: SourceInputs) -> Source:
        return OnPolicy(self, materials)

    def provided_batch_fields(self) -> frozenset[str]:
        return frozenset({"teacher_logprobs", "sampled_logprobs"} | ({"teacher_ids"} if self.top_k else set()))


class OnPolicy(SampledSource):
    """A source of answers sampled from the student and scored by a frozen teacher."""

    def __init__(self, config: OnPolicyConfig, materials: SourceInputs) -> None:
        self.config = config
        self.teacher = OnPolicyTeacher(config.teacher, materials, config.row, config.top_k)
        self.frozen_models = {"teacher": self.teacher.sha256}
        super().__init__(config, materials)

    def step(self, step: int) -> StepBatches:
        self.sampler.send_weights()
        problems = list(islice(endless_problems(self.task, self.seed * 1_000_003 + step), self.config.problems))
        groups = [
            [
                ScoredCompletion(answer, grade_completion(self.task, p, answer), 0.0, self.sampler.age(answer))
                for answer in completions
            ]
            for p, completions in zip(problems, self.sample([p.messages for p in problems], step))
        ]
        every = [scored for group in groups for scored in group]
        batches = [self._batch(part) for part in self.split_into_updates(every, step)]
        read = sum(batch.n_tokens for batch in batches)
        metrics: dict[str, Any] = {"teacher_tokens": read, "teacher_flops": read * self.teacher.flops}
        measured = rollout_metrics(problems, groups, self.chat)
        metrics |= {name: value for name, value in measured.items() if not name.startswith("groups_")}
        return StepBatches(batches, metrics, fresh=True)

    def _batch(self, scored: list[ScoredCompletion]) -> TrainBatch:
        batch = batch_of(scored, self.config.row, self.chat.pad)
        return self.teacher.add_distributions(replace(batch, advantages=None, lengths=None))


class OnPolicyTeacher:
    """A frozen teacher: the newest checkpoint of the run directory `path`, in fp32 on the student's device. `sha256` is the
    fingerprint of the checkpoint.

    Raises an error if teacher and student have different vocabularies, or if a row is longer than the teacher's
    context.
    """

    def __init__(self, path: str, materials: SourceInputs, row: int, top_k: int) -> None:
        run, student = RunDir(Path(path)), materials.model
        self.device = str(student.embed_tokens.weight.device)
        self.model, self.sha256 = load_frozen(run, self.device, student.ops), fingerprint(run.checkpoint())
        config = self.model.config
        tokenizer = Tokenizer.load(run.tokenizer_file)
        if tokenizer != materials.tokenizer or config.vocab_size != student.config.vocab_size:
            raise vocabulary_mismatch_error(f"teacher {path}", config.vocab_size, student.config.vocab_size)
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
        scored = map_rows(batch, self._teacher_logprobs, self.threads)
        logprobs = torch.cat([part for part, _ in scored])
        if not self.top_k:
            return replace(batch, teacher_logprobs=logprobs)
        return replace(batch, teacher_logprobs=logprobs, teacher_ids=torch.cat([ids for _, ids in scored]))

    def _teacher_logprobs(self, part: TrainBatch) -> tuple[Tensor, Tensor]:
        """Return the teacher's log-probabilities and token ids, both [rows, seq, k]. At untrained positions, both tensors are
        0.

        If `top_k` is 0 (the whole vocabulary), the tensor of token ids is empty.
        """
        batch = part.to(self.device)
        logprobs = next_logprobs(self.model, batch.tokens, batch.positions, batch.segments, batch.loss_mask)
        ids = logprobs.new_empty(len(logprobs), 0, dtype=torch.long)
        if self.top_k:
            logprobs, ids = logprobs.topk(self.top_k, dim=-1)
        at, shape, device = batch.loss_mask.nonzero(as_tuple=True), batch.tokens.shape, part.tokens.device
        scattered = [x.new_zeros(*shape, x.shape[-1]).index_put(at, x).to(device) for x in (logprobs, ids)]
        return scattered[0], scattered[1]
