"""One lane: a scheduler and a runner, that is, one batch in flight. An engine has several, each run by one thread at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from rorqual.engine.runner import Runner, Sampled
from rorqual.engine.scheduler import Scheduler, Sequence
from rorqual.model import Decoder


@dataclass(frozen=True)
class Finished:
    """A sequence that ended, with what was drawn."""

    sequence: Sequence
    sampled: Sampled


class Lane:
    """Advances its sequences by one token a `step`."""

    def __init__(
        self, model: Decoder, slots: int, stop_ids: Iterable[int], *, record_experts: bool, record_kept: bool = False
    ) -> None:
        self.scheduler = Scheduler(slots)
        self.runner = Runner(model, slots, record_experts=record_experts, record_kept=record_kept)
        self.stop_ids = np.array(sorted(stop_ids), np.int64)

    @property
    def idle(self) -> bool:
        return self.scheduler.idle

    def submit(self, sequences: list[Sequence]) -> None:
        """Queue sequences and make room for the longest."""
        longest = max((s.limit for s in sequences), default=0)
        self.scheduler.room = self.runner.reserve(longest, len(self.scheduler.active))
        self.scheduler.submit(sequences)

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """Admit what may run, give every active row one token, and return the sequences that ended."""
        scheduler, runner = self.scheduler, self.runner
        first_row = len(scheduler.active)
        admitted = scheduler.admit()
        if admitted:
            runner.admit(admitted, first_row)
        n = len(scheduler.active)
        if not n:
            return []
        tokens = runner.step(scheduler.rows, n)
        done = scheduler.advance(tokens, self.stop_ids)
        if not len(done):
            return []
        finished = []
        for row, length in zip(done.tolist(), (scheduler.rows.position[done] + 1).tolist()):
            sequence = scheduler.active[row]
            finished.append(Finished(sequence, runner.take(sequence, length)))
        self._release(done)
        return finished

    @torch.inference_mode()
    def cancel(self, ticket: int) -> None:
        """Forget what was submitted under `ticket`; its rows are free at once."""
        rows = self.scheduler.cancel(ticket)
        if len(rows):
            self._release(rows)

    def cancel_all(self) -> None:
        """Forget everything."""
        for ticket in {s.ticket for s in (*self.scheduler.active, *self.scheduler.waiting)}:
            self.cancel(ticket)

    def drawn(self) -> list[tuple[Sequence, int]]:
        """The newest token of each active sequence."""
        return list(zip(self.scheduler.active, self.runner.current[: len(self.scheduler.active)].tolist()))

    def _release(self, rows: np.ndarray) -> None:
        holes, movers = self.scheduler.release(rows)
        keys = int(self.scheduler.rows.position[holes].max()) if len(holes) else 0
        self.runner.close(holes, movers, keys)
