"""A stand-in for the network that a scheduler drives: what a position keeps is the chain of everything that was fed up to it.

A block that holds anything else than its sequence's own past, be it another tenant's, stale, or not yet written, shows at once: a step
reads all of it, and what is drawn depends on it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from consistency import check_scheduler

from rorqual.engine.kv_cache.manager import KVCacheManager
from rorqual.engine.request import SamplingParams
from rorqual.engine.scheduler import Scheduler, SchedulerOutput, Sequence
from rorqual.ops.paged import BLOCK, QUERIES

END = 1
STOPS = np.array([END])
VOCAB = 40


def chained(before: bytes, tenant: str, token: int) -> bytes:
    """What is kept of a position: of everything before it, its token, and whose it is."""
    return blake2b(before + tenant.encode() + b":" + token.to_bytes(4, "little"), digest_size=8).digest()


def drawn(state: bytes, key: int) -> int:
    return int.from_bytes(blake2b(state + key.to_bytes(8, "little"), digest_size=4).digest(), "little") % VOCAB


def answer(sequence: Sequence) -> list[int]:
    """All ids of a sequence computed alone, without any cache."""
    ids, state = list(sequence.prompt), b""
    for token in ids:
        state = chained(state, sequence.tenant, token)
    endless = sequence.params.ignore_eos
    while len(ids) < sequence.limit and (len(ids) == len(sequence.prompt) or ids[-1] != END or endless):
        ids.append(drawn(state, sequence.key))
        state = chained(state, sequence.tenant, ids[-1])
    return ids


def some_ids(seed: int, count: int) -> tuple[int, ...]:
    """Ids that no two seeds have in common for long."""
    return tuple(random.Random(seed).choices(range(2, VOCAB), k=count))


class Tape:
    """Histories by slot and contents by block; `keeps` is what `Saved` is to the runner."""

    def __init__(self, slots: int, blocks: int, *, step_tokens: int) -> None:
        self.contents = [[b""] * BLOCK for _ in range(blocks)]
        self.ids: list[list[int]] = [[] for _ in range(slots)]
        self.notes: list[list[int]] = [[] for _ in range(slots)]  # one for each token drawn, as log-probabilities are
        self.kv_cache = KVCacheManager(blocks, b"s" * 32, b"weights", self.read, self.write)
        self.scheduler = Scheduler(slots, self.kv_cache, self, step_tokens=step_tokens)
        self.fed_in_a_step: list[tuple[int, int]] = []
        self.preempted = 0

    # ---- History, and what KVCacheManager asks of a cache

    def tokens(self, slot: int, length: int) -> list[int]:
        return self.ids[slot][:length]

    def save(self, slot: int, start: int, length: int) -> object:
        self.preempted += 1
        return list(self.notes[slot])

    def read(self, block: int) -> bytes:
        return b"".join(self.contents[block])

    def write(self, block: int, contents: bytes) -> bool:
        self.contents[block] = [contents[i : i + 8] for i in range(0, 8 * BLOCK, 8)]
        return True

    # ---- a step

    def _kept(self, sequence: Sequence, position: int) -> bytes:
        return self.contents[sequence.blocks[position // BLOCK]][position % BLOCK] if position >= 0 else b""

    def _feed(self, sequence: Sequence, position: int) -> None:
        state = b""
        for at in range(position):  # attention reads everything
            state = chained(state, sequence.tenant, self.ids[sequence.slot][at])
            assert self._kept(sequence, at) == state, (sequence.request_id, at)
        block = sequence.blocks[position // BLOCK]
        self.contents[block][position % BLOCK] = chained(state, sequence.tenant, self.ids[sequence.slot][position])

    def step(self) -> list[tuple[Sequence, list[int]]]:
        """As `EngineCore.step`: those that ended, with all their ids."""
        scheduler = self.scheduler
        plan = scheduler.schedule()
        for sequence in plan.admitted:
            self.ids[sequence.slot] = list(sequence.tokens)
            saved = sequence.saved
            self.notes[sequence.slot] = list(saved) if isinstance(saved, list) else []
        if plan.empty:
            return []
        self._run(plan)
        tokens = [drawn(self._kept(s, len(self.ids[s.slot]) - 1), s.key) for s in scheduler.running]
        for sequence, token in zip(scheduler.running, tokens):
            self.ids[sequence.slot].append(token)
            self.notes[sequence.slot].append(token)
        for chunk in plan.chunks:
            self.kv_cache.cache_blocks(chunk.sequence, chunk.stop)
        done = scheduler.advance_rows(np.array(tokens, np.int64), STOPS)
        ended = []
        for row in done.tolist():
            sequence = scheduler.running[row]
            ids = list(self.ids[sequence.slot])
            assert self.notes[sequence.slot] == ids[len(sequence.prompt) :], "what was kept of each token"
            ended.append((sequence, ids))
        scheduler.release_rows(done)
        return ended

    def _run(self, plan: SchedulerOutput) -> None:
        self.fed_in_a_step.append((plan.decode, sum(c.stop - c.start for c in plan.chunks)))
        for row, sequence in enumerate(self.scheduler.running[: plan.decode]):
            assert self.scheduler.rows.position[row] == len(self.ids[sequence.slot]) - 1
            assert self.scheduler.rows.key[row] == sequence.key and self.scheduler.rows.slot[row] == sequence.slot
            self._feed(sequence, len(self.ids[sequence.slot]) - 1)
        for chunk in plan.chunks:
            for position in range(chunk.start, chunk.stop):
                self._feed(chunk.sequence, position)
        before = {block: list(self.contents[block]) for _, block in plan.copies}
        for to, from_ in plan.copies:
            self.contents[to] = list(before[from_])


@dataclass
class Job:
    """A sequence to come. `at`: the step it comes in; `leaves`: the step it is cancelled in, none: never."""

    sequence: Sequence
    at: int = 0
    leaves: int | None = None


@dataclass
class Seen:
    """What a drive did, as seen from outside."""

    ended: dict[int, list[int]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    cancelled_while_running: int = 0
    stepped_back: int = 0


def drive(tape: Tape, jobs: list[Job], after: Callable[[int], None] = lambda step: None) -> Seen:
    """Run until all is done; the laws that hold after every step are asserted on the way."""
    seen, scheduler, step = Seen(), tape.scheduler, 0
    while step <= max((job.at for job in jobs), default=0) or not scheduler.idle:
        running = _running(scheduler)
        for job in jobs:
            if job.leaves == step and job.at < step:
                seen.cancelled_while_running += job.sequence.request_id in running
                scheduler.cancel(job.sequence.request_id)
                assert job.sequence.request_id not in scheduler.request_ids() and job.sequence.slot == -1
                assert not job.sequence.blocks
                check_scheduler(scheduler)
            if job.at == step:
                scheduler.submit([job.sequence])
        running = _running(scheduler)
        ended = tape.step()
        check_scheduler(scheduler)
        decode, fed = tape.fed_in_a_step[-1] if tape.fed_in_a_step else (0, 0)
        assert fed <= max(scheduler.step_tokens - decode, QUERIES)
        for sequence, ids in ended:
            assert sequence.request_id not in seen.ended
            seen.ended[sequence.request_id] = ids
            seen.order.append(sequence.request_id)
        seen.stepped_back += len(running - _running(scheduler) - {s.request_id for s, _ in ended})
        after(step)
        step += 1
        assert step < 20_000, "somebody waits for ever"
    return seen


def _running(scheduler: Scheduler) -> set[int]:
    return {s.request_id for s in (*scheduler.running, *scheduler.prefilling)}


def sequence(
    request_id: int, prompt: tuple[int, ...] = (5, 6), *, new: int = 3, endless: bool = False, **fields: object
) -> Sequence:
    """A sequence whose key is its request_id, unless another is given."""
    params = SamplingParams(max_tokens=new, ignore_eos=endless)
    given = {"key": request_id, **fields}
    return Sequence(request_id, 0, prompt, params, limit=len(prompt) + new, **given)  # type: ignore[arg-type]
