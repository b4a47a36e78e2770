"""The sampler: build the sampling inputs of the rows of a step, and store the sampled tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rorqual.engine.grammar.constraint import Bools, Constraint
from rorqual.engine.histories import SequenceHistories
from rorqual.engine.penalties import TokenCounts
from rorqual.engine.scheduler import Scheduler
from rorqual.engine.seeds import uniform
from rorqual.engine.sequence import Ints, Sequence
from rorqual.ops.sampling import SamplerOutput, SamplingMetadata, SamplingSettings, likeliest_tokens, needs_history


class Sampler:
    """Builds the sampling inputs of the running rows, and stores the sampled tokens in `histories`."""

    def __init__(self, histories: SequenceHistories, vocab: int, device: torch.device) -> None:
        self.histories, self.vocab, self.device = histories, vocab, device
        self.counts = TokenCounts()
        self._settings: SamplingSettings | None = None
        self._constrained: list[tuple[int, Constraint]] = []
        self._with_min_tokens: list[int] = []
        self._version = -1

    def start_token_counts(self, sequence: Sequence) -> None:
        """Count the tokens of a newly admitted sequence, if its request has penalties."""
        if needs_history(sequence.params):
            self.counts.add_sequence(sequence.slot, sequence.prompt, sequence.tokens[len(sequence.prompt) :])
        else:
            self.counts.drop(sequence.slot)

    def metadata(self, scheduler: Scheduler, n: int, steps: int = 1) -> SamplingMetadata:
        """Return the sampling parameters of rows 0 to `n` - 1 of the batch, and their random numbers in the next `steps` steps."""
        rows, active = scheduler.rows, scheduler.running
        if self._version != scheduler.version or self._settings is None:
            self._settings = SamplingSettings.of([s.params for s in active], self.device)
            self._constrained = [(row, s.constraint) for row, s in enumerate(active) if s.constraint]
            self._with_min_tokens = [row for row, s in enumerate(active) if s.barred]
            self._version = scheduler.version
        penalties, seen = self._settings.penalties, None
        if penalties is not None and len(penalties.rows):
            seen = self.counts.counts_of_rows(rows.slot[:n][penalties.rows])
        allowed = self._allowed_token_masks(active, rows.position[:n])
        positions = (rows.position[:n] + np.arange(steps)[:, None]).ravel()
        return SamplingMetadata(self._settings, uniform(np.tile(rows.key[:n], steps), positions), seen, allowed)

    def _allowed_token_masks(self, active: list[Sequence], position: Ints) -> tuple[Ints, Bools] | None:
        """Return the indices of the restricted rows and each restricted row's mask of allowed tokens, or None if no row is
        restricted.

        A row is restricted by its grammar or by `min_tokens`. A reply shorter than `min_tokens` may end only if its
        grammar allows nothing else.
        """
        masks = {row: mask for row, constraint in self._constrained if (mask := constraint.mask()) is not None}
        for row in self._with_min_tokens:
            sequence = active[row]
            if int(position[row]) + 1 - len(sequence.prompt) < sequence.params.min_tokens:
                continuing = masks[row].copy() if row in masks else np.ones(self.vocab, np.bool_)
                continuing[list(sequence.barred)] = False
                if continuing.any():
                    masks[row] = continuing
        return (np.array(list(masks)), np.stack(list(masks.values()))) if masks else None

    def store_sampled_tokens(self, drawn: SamplerOutput, scheduler: Scheduler, backend: str) -> Ints:
        """Store the sampled token of each row and return the tokens [rows]. Error messages name the backend `backend`."""
        history, rows, n = self.histories, scheduler.rows, len(drawn.ids)
        slot, position = rows.slot[:n], rows.position[:n]
        if history.kept.shape[-1]:
            kept = drawn.distribution[:, : self.vocab].isfinite().cpu().numpy()
            history.kept[slot, position + 1] = np.packbits(kept, axis=-1)
        new: Ints = drawn.ids.cpu().numpy()
        if new.min() < 0 or new.max() >= drawn.distribution.shape[1]:
            raise ValueError(f"backend '{backend}' sampled token ids {new.tolist()} from a vocabulary of {self.vocab}")
        new = new.clip(max=self.vocab - 1)  # if logits are NaN, the sampled id may belong to a padding column
        history.ids[slot, position + 1] = new
        history.logprobs[slot, position + 1] = drawn.logprobs.cpu().numpy()
        if self._settings is not None and self._settings.penalties is not None:
            self.counts.add_tokens(slot, new)
        for row, constraint in self._constrained:
            constraint.accept(int(new[row]))
        self._store_top_logprobs(drawn.distribution, scheduler.running)
        return new

    def _store_top_logprobs(self, logprobs: Tensor, active: list[Sequence]) -> None:
        requesting = [row for row, sequence in enumerate(active) if sequence.params.top_logprobs]
        if not requesting:
            return
        most = max(active[row].params.top_logprobs for row in requesting)
        for row, best in zip(requesting, likeliest_tokens(logprobs[requesting], most)):
            self.histories.top[active[row].slot].append(best[: active[row].params.top_logprobs])
