"""Run trained models over held-out samples, one sample per row. Measure the loss of each token, and whether the model ranks the
token first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rorqual.core.records import RunDir
from rorqual.data.chat import ChatFormat, chat_format
from rorqual.data.pack import TrainingSample, pack_rows
from rorqual.data.tokenizer import Tokenizer
from rorqual.model.decoder import Decoder, DecoderOutput
from rorqual.model.load.run_directory import load_run
from rorqual.ops.losses import token_logprobs
from rorqual.tasks.find import load_task, safe_problems
from rorqual.tasks.task import Problem, Split
from rorqual.train.batch import TrainBatch
from rorqual.train.sources.worked import worked_sample


@dataclass(frozen=True)
class ScoredBlock:
    """A forward pass over some samples. `losses` [rows, row], in nats, and `right` [rows, row] are 0 outside the loss mask.
    `right` tells whether the target is the most likely token."""

    batch: TrainBatch
    output: DecoderOutput
    losses: Tensor
    right: Tensor

    def mean_losses(self) -> list[float]:
        """Return the mean loss of each sample over the tokens in its loss mask."""
        return (self.losses.sum(1) / (self.batch.loss_mask > 0).sum(1)).tolist()


@torch.no_grad()
def run_on_sample_blocks(
    model: Decoder, samples: Sequence[TrainingSample], rows: int = 32, record: Sequence[str] = ()
) -> Iterator[ScoredBlock]:
    """Yield one forward pass for every `rows` samples. `record` names the tensors that the attention records."""
    for start in range(0, len(samples), rows):
        part = samples[start : start + rows]
        batch = TrainBatch.from_packed(pack_rows(part, [[row] for row in range(len(part))], max(map(len, part))).batch)
        output = model(batch.tokens, batch.positions, segments=batch.segments, record=record)
        at = batch.loss_mask.nonzero(as_tuple=True)
        logits, targets = model.logits(output.hidden[at]), batch.targets[at]
        losses, right = (torch.zeros(batch.tokens.shape, dtype=kind) for kind in (torch.float64, torch.bool))
        losses[at] = -token_logprobs(logits, targets).double()
        right[at] = logits.argmax(-1) == targets
        yield ScoredBlock(batch, output, losses, right)


def mean_losses(model: Decoder, samples: Sequence[TrainingSample]) -> list[float]:
    """Return the mean loss of each sample, in nats per token in its loss mask. The losses of MTP modules are not included."""
    return [loss for block in run_on_sample_blocks(model, samples) for loss in block.mean_losses()]


def load_trained(run: Path) -> tuple[Decoder, ChatFormat]:
    """Return the model and the chat format of a run."""
    out = RunDir(run)
    return load_run(out), chat_format(Tokenizer.load(out.tokenizer_file))


def first_problems(task: str, options: Mapping[str, Any], split: Split, seed: int, count: int) -> list[Problem]:
    """Return the first `count` problems of a task's split. The same arguments give the same problems."""
    return list(islice(safe_problems(load_task(task, options=dict(options)), split, seed), count))


def solution_samples(problems: Sequence[Problem], chat: ChatFormat) -> list[TrainingSample]:
    """Return the worked solutions of `problems`, with thinking, as training samples."""
    return [worked_sample(problem, chat, think=True) for problem in problems]
