"""The batch of the training loop: the tokens of one optimizer update, as tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from rorqual.core.errors import ConfigError
from rorqual.data.pack import Batch


@dataclass(frozen=True)
class TrainBatch:
    """A batch of rows of packed documents. Every tensor is [rows, seq] unless stated otherwise.

    - `targets[i]` is the token after `tokens[i]` in its document. `loss_mask` (fp32) is the weight of each target in the loss.
    - `segments` holds the index of each token's document in the row, or -1 for padding. `positions` restarts at 0 in each
      document.

    For reinforcement learning, the batch also has:

    - `advantages`, the advantage of the answer that the token belongs to.
    - `sampled_logprobs`, the sampler's log-probabilities of the targets.
    - `lengths`, the number of trained tokens in the token's document.
    - `replay` [rows, seq, moe layers, k], the sampler's expert choices.
    - `old_logprobs`, the trainer's log-probabilities of the targets before the first update of the step.
    - `reference_logprobs`, the reference model's log-probabilities of the targets.
    - `kept` [rows, seq, ceil(vocab / 8)], the tokens that top-p and top-k allowed, as bits (`ops.losses.mask_tokens_not_kept`).
    - `ages`, the policy age: the trainer's policy version minus the version that sampled the document. `ages` is None
      if all ages are 0.

    Distillation adds `teacher_logprobs` [rows, seq, k], the teacher's log-probabilities of k candidate targets at
    temperature 1. `teacher_ids` [rows, seq, k] are the token ids of the candidates. Without `teacher_ids`, the
    candidates are the whole vocabulary in order. `teacher_logprobs` and `teacher_ids` are 0 where `loss_mask` is 0.
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
        """Build a training batch from packed NumPy rows."""
        return cls(
            tokens=torch.from_numpy(packed.tokens),
            targets=torch.from_numpy(packed.targets),
            loss_mask=torch.from_numpy(packed.loss_mask).float(),
            segments=torch.from_numpy(packed.segments),
            positions=torch.from_numpy(packed.positions),
        )

    def split(self, parts: int, together: int = 1) -> list[TrainBatch]:
        """Split the batch by rows into at most `parts` micro-batches, in order. Each group of `together` consecutive rows stays in
        one micro-batch.

        Raises ConfigError if the number of rows is not a multiple of `together`.
        """
        groups, rest = divmod(len(self.tokens), together)
        if rest:
            raise ConfigError(
                f"the batch has {len(self.tokens)} rows, but an objective keeps {together} rows together",
                where="source",
                remedy=f"Let the source return batches whose number of rows is a multiple of {together}.",
            )
        sizes = [together * len(part) for part in torch.arange(groups).chunk(parts)]
        present = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        chunks = {name: value.split(sizes) for name, value in present.items()}
        return [replace(self, **{name: chunk[i] for name, chunk in chunks.items()}) for i in range(len(sizes))]

    def to(self, device: str) -> TrainBatch:
        """Move all tensors to `device`."""
        present = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(self, **{name: value.to(device) for name, value in present.items()})

    @property
    def document_indices(self) -> Tensor:
        """The index of each token's document in the whole batch [rows, seq], or -1 for padding."""
        rows, width = self.segments.shape
        row = torch.arange(rows, device=self.segments.device).unsqueeze(-1)
        return torch.where(self.segments >= 0, row * (width + 1) + self.segments, -1)

    @property
    def n_tokens(self) -> int:
        """Number of tokens that are not padding."""
        return int((self.segments >= 0).sum())
