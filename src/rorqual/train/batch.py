"""What a source gives the loop: one optimizer update's tokens, as tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from rorqual.data.pack import Batch


@dataclass(frozen=True)
class TrainBatch:
    """Rows of packed documents; every tensor [rows, seq].

    `targets[i]` is the token after `tokens[i]` in its document, `loss_mask` (fp32) its weight, 0 where nothing is predicted;
    `segments` the document number, -1 on padding. For reinforcement: `advantages`, `sampled_logprobs` (of the targets, by the
    sampler), `lengths` (trained tokens of the document), and `replay` [rows, seq, moe layers, k], the sampler's experts;
    `old_logprobs` by the trainer before the step's first update, `reference_logprobs` by a frozen model, and `kept` [rows, seq,
    ceil(vocab / 8)], the sets that top-p and top-k left, as bits (`ops.losses.keep_only`). `ages`: of each token the updates between the
    weights that drew its document and the trainer's; None where all are 0.

    For distillation: `teacher_logprobs` [rows, seq, k], a teacher's log-probabilities at temperature 1 of what follows
    `tokens[i]`, so of the same token as `targets[i]`; of the tokens `teacher_ids` [rows, seq, k], or without these of the whole
    vocabulary in its order. Zeros where `loss_mask` is 0.
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
        """The same rows as tensors."""
        return cls(
            tokens=torch.from_numpy(packed.tokens),
            targets=torch.from_numpy(packed.targets),
            loss_mask=torch.from_numpy(packed.loss_mask).float(),
            segments=torch.from_numpy(packed.segments),
            positions=torch.from_numpy(packed.positions),
        )

    def split(self, parts: int) -> list[TrainBatch]:
        """At most `parts` micro-batches of whole rows, in order."""
        present = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        chunks = {name: torch.chunk(value, parts) for name, value in present.items()}
        return [
            replace(self, **{name: chunk[i] for name, chunk in chunks.items()}) for i in range(len(chunks["tokens"]))
        ]

    def to(self, device: str) -> TrainBatch:
        """On `device`."""
        present = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(self, **{name: value.to(device) for name, value in present.items()})

    @property
    def n_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.segments >= 0).sum())
