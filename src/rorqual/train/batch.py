"""The batch type of the training loop: the tokens of one optimizer update, as tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from rorqual.data.pack import Batch


@dataclass(frozen=True)
class TrainBatch:
    """Rows of packed documents. Every tensor is [rows, seq] unless stated otherwise.

    - `targets[i]` is the token after `tokens[i]` in its document. `loss_mask` (fp32) is its weight, 0 without a prediction.
    - `segments` is the index of the document in its row, -1 on padding. `positions` restarts at 0 in each document.

    Reinforcement learning adds:

    - `advantages`, and `sampled_logprobs`, the sampler's log-probabilities of the targets.
    - `lengths`, the number of trained tokens in the document.
    - `replay` [rows, seq, moe layers, k], the sampler's expert choices.
    - `old_logprobs`, the trainer's log-probabilities before the step's first update.
    - `reference_logprobs`, those of a frozen model.
    - `kept` [rows, seq, ceil(vocab / 8)], the token sets that top-p and top-k left, as bits (`ops.losses.keep_only`).
    - `ages`, the number of updates between the weights that sampled a token's document and the trainer's; None if all are 0.

    Distillation adds `teacher_logprobs` [rows, seq, k], the teacher's log-probabilities at temperature 1 of the token after
    `tokens[i]`, the one in `targets[i]`. They belong to the tokens `teacher_ids` [rows, seq, k], or without these to the whole
    vocabulary in order. They are 0 where `loss_mask` is 0.
    """

    tokens: Tensor
    targets: Tensor
    loss_mask: Tensor
    segments: Tensor
    positions: Tensor
    advantages: Tensor | None = None
    sampled_logprobs: Tensor | None = None
    lengths: Tensor | None = None
    replay: Tensor | None = None
    old_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    kept: Tensor | None = None
    ages: Tensor | None = None
    teacher_ids: Tensor | None = None
    teacher_logprobs: Tensor | None = None

    @classmethod
    def from_packed(cls, packed: Batch) -> TrainBatch:
        """Convert packed rows to tensors."""
        return cls(
            tokens=torch.from_numpy(packed.tokens),
            targets=torch.from_numpy(packed.targets),
            loss_mask=torch.from_numpy(packed.loss_mask).float(),
            segments=torch.from_numpy(packed.segments),
            positions=torch.from_numpy(packed.positions),
        )

    def split(self, parts: int) -> list[TrainBatch]:
        """Split the batch into at most `parts` micro-batches of whole rows, in order."""
        present = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        chunks = {name: torch.chunk(value, parts) for name, value in present.items()}
        return [
            replace(self, **{name: chunk[i] for name, chunk in chunks.items()}) for i in range(len(chunks["tokens"]))
        ]

    def to(self, device: str) -> TrainBatch:
        """Return the batch on `device`."""
        present = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(self, **{name: value.to(device) for name, value in present.items()})

    @property
    def n_tokens(self) -> int:
        """Number of tokens without padding."""
        return int((self.segments >= 0).sum())
