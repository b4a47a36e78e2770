"""Which sequence runs in which row, and when it ends. Plain Python and numpy: no tensors, no model.

A sequence waits, is admitted to a row, runs until it stops, and leaves. Rows 0..B-1 are in use and stay contiguous: when
sequences leave, the last rows are moved into the holes. What is kept of a sequence while it runs (its tokens) lives under
a slot, which does not change, so that a move touches the cache alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rorqual.engine.request import SamplingParams

Ints = npt.NDArray[np.int64]


@dataclass(eq=False)
class Sequence:
    """One sample in the making. `key` identifies its random numbers; `limit` is the number of ids, prompt included, at which it ends."""

    ticket: int
    sample: int
    prompt: tuple[int, ...]
    params: SamplingParams
    key: int
    limit: int
    slot: int = -1


@dataclass
class Rows:
    """What the hot loop needs of each row, as arrays [slots]; `position` is where the next token is fed."""

    position: Ints
    limit: Ints
    slot: Ints
    key: npt.NDArray[np.uint64]
    temperature: npt.NDArray[np.float32]
    top_p: npt.NDArray[np.float32]
    top_k: Ints
    ignore_eos: npt.NDArray[np.bool_]

    @classmethod
    def empty(cls, slots: int) -> Rows:
        def ints() -> Ints:
            return np.zeros(slots, np.int64)

        def floats() -> npt.NDArray[np.float32]:
            return np.zeros(slots, np.float32)

        key, ignore_eos = np.zeros(slots, np.uint64), np.zeros(slots, np.bool_)
        return cls(ints(), ints(), ints(), key, floats(), floats(), ints(), ignore_eos)

    def fill(self, row: int, sequence: Sequence) -> None:
        params = sequence.params
        self.position[row], self.limit[row] = len(sequence.prompt) - 1, sequence.limit
        self.slot[row], self.key[row] = sequence.slot, sequence.key
        self.temperature[row], self.top_p[row], self.top_k[row] = params.temperature, params.top_p, params.top_k
        self.ignore_eos[row] = params.ignore_eos

    def move(self, to: Ints, from_: Ints) -> None:
        for array in vars(self).values():
            array[to] = array[from_]


class Scheduler:
    """Continuous batching over `slots` rows, of which `room` may be in use: as many as the cache has memory for.

    Admission comes in blocks: a quarter of the rows must be free, or room for all that wait, so that prompts are
    prefilled together rather than one by one as rows fall free.
    """

    def __init__(self, slots: int) -> None:
        self.slots = self.room = slots
        self.rows = Rows.empty(slots)
        self.active: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self._free = list(range(slots - 1, -1, -1))

    @property
    def idle(self) -> bool:
        return not self.active and not self.waiting

    def submit(self, sequences: Iterable[Sequence]) -> None:
        """Queue sequences, first come first served."""
        self.waiting.extend(sequences)

    def admit(self) -> list[Sequence]:
        """Move what may run now from the queue to rows len(active).., and return it in the order of the rows."""
        room = self.room - len(self.active)
        if not self.waiting or room < min(len(self.waiting), max(1, self.room // 4)):
            return []
        admitted = [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))]
        # Equal prompts stand side by side after one leader each, which alone is prefilled.
        leaders: dict[tuple[int, ...], Sequence] = {}
        for sequence in admitted:
            leaders.setdefault(sequence.prompt, sequence)
        first = sorted(leaders.values(), key=lambda s: len(s.prompt))
        chosen = set(map(id, first))
        ordered = first + [sequence for sequence in admitted if id(sequence) not in chosen]
        for sequence in ordered:
            sequence.slot = self._free.pop()
            self.rows.fill(len(self.active), sequence)
            self.active.append(sequence)
        return ordered

    def advance(self, tokens: Ints, stops: Ints) -> Ints:
        """Every active row was given one token [active]: move on, and return the rows that are done, ascending."""
        n, rows = len(self.active), self.rows
        rows.position[:n] += 1
        done = rows.position[:n] + 1 >= rows.limit[:n]
        for stop in stops:
            done |= (tokens == stop) & ~rows.ignore_eos[:n]
        return np.flatnonzero(done)

    def release(self, rows: Ints) -> tuple[Ints, Ints]:
        """Free `rows` (ascending) and close the holes: rows [n] to fill, and the rows [n] that go there."""
        keep = len(self.active) - len(rows)
        for row in rows.tolist():
            self._free.append(self.active[row].slot)
        holes = rows[rows < keep]
        tail = np.arange(keep, len(self.active))
        movers = tail[~np.isin(tail, rows)]
        self.rows.move(holes, movers)
        for hole, mover in zip(holes.tolist(), movers.tolist()):
            self.active[hole] = self.active[mover]
        del self.active[keep:]
        return holes, movers

    def cancel(self, ticket: int) -> Ints:
        """Drop what waits under `ticket`, and return the rows that run under it, for `release`."""
        self.waiting = deque(s for s in self.waiting if s.ticket != ticket)
        return np.array([row for row, s in enumerate(self.active) if s.ticket == ticket], np.int64)
