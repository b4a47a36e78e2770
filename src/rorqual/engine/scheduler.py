"""The scheduler: decides which sequences decode, are prefilled, wait or are preempted in the next engine step.

The scheduler uses only Python and numpy. The scheduler has no torch tensors and does not call the model.

A sequence is queued, gets a slot, is prefilled in chunks, decodes in a row of the batch until it stops, and is released. B
decoding sequences use rows 0 to B - 1 of the batch: when sequences finish, the last rows move into the gaps. The runner stores
the state of a sequence under its slot. A sequence keeps its slot until it finishes or is preempted.

Keys and values are stored in blocks (`KVCacheManager`). When no KV-cache block is available, the scheduler preempts the
sequence that ranks last. The preempted sequence releases its blocks and is queued again. When the preempted sequence resumes,
tokens whose blocks are no longer cached are prefilled again. The scheduler also preempts for fairness (`_choose_victim`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rorqual.engine.kv_cache.manager import KVCacheManager
from rorqual.engine.request_queue import RequestQueue, round_robin
from rorqual.engine.sequence import InputBatch, Ints, Sequence
from rorqual.ops.paged import BLOCK, QUERIES

SCORED_TOKEN_COST = 8
"""Number of prefill tokens that a prompt token counts as if its log-probability is computed."""
PREFILL_BESIDE_OTHERS = 2 * QUERIES
"""Maximum number of prefill tokens of a step in which one tenant decodes and another one has a prompt, or an eighth of
`step_tokens` if that is more."""
QUANTUM = 16
"""Minimum number of tokens that a sequence decodes before it may be preempted for fairness. The minimum `QUANTUM` lets every
sequence make progress."""


@dataclass(frozen=True)
class PrefillChunk:
    """A prefill chunk: the tokens [start, stop) of a sequence, which one step computes."""

    sequence: Sequence
    start: int
    stop: int


@dataclass
class SchedulerOutput:
    """The scheduled work of one engine step."""

    decode: int
    """Number of batch rows that decode one token each in the step."""
    chunks: list[PrefillChunk]
    """Prefill chunks of the step. Chunks that complete a prompt come last."""
    joined: list[tuple[Sequence, int]]
    """(Sequence, index of a chunk) for each sequence that starts to decode in this step, in row order. The chunk completes the
    sequence's prompt, and the chunk's last position gives the logits of the sequence's first sampled token."""
    copies: list[tuple[int, int]]
    """KV-cache blocks to copy after the forward pass, as pairs (target block, source block)."""
    admitted: list[Sequence]
    """Sequences that get a slot in the step."""

    @property
    def empty(self) -> bool:
        """Whether the planned step computes no tokens."""
        return not self.decode and not self.chunks


class HistoryAccess(Protocol):
    """Access to the token histories that the runner stores by slot."""

    def tokens(self, slot: int, length: int) -> list[int]:
        """Return the first `length` token ids of the sequence in `slot`."""

    def save(self, slot: int, start: int, length: int) -> object:
        """Return the per-token results of tokens [start, length), which the runner restores after a preemption."""


class Scheduler:
    """Continuous batching over `slots` rows, with KV-cache blocks from the manager `pages`.

    A step computes at most `step_tokens` tokens, which limits how long a prompt delays the decoding sequences. Beside the decoding
    sequences of other tenants, all prompts together get `PREFILL_BESIDE_OTHERS` tokens of a step. A prompt token whose
    log-probability is computed counts as `SCORED_TOKEN_COST` tokens. The first prompt always gets `QUERIES` tokens.
    """

    def __init__(self, slots: int, pages: KVCacheManager, history: HistoryAccess, *, step_tokens: int = 1024) -> None:
        self.slots, self.kv_cache, self.history = slots, pages, history
        self.step_tokens = step_tokens
        self.rows = InputBatch.empty(slots)
        self.running: list[Sequence] = []
        self.prefilling: list[Sequence] = []
        self.waiting = RequestQueue()
        self.preemptions = 0
        self.version = 0
        """A counter that changes whenever the mapping of batch rows to sequences changes."""
        self._free = list(range(slots - 1, -1, -1))
        self._arrivals = 0

    @property
    def idle(self) -> bool:
        """Whether the scheduler has no running and no queued sequences."""
        return not self.running and not self.prefilling and not self.waiting

    def submit(self, sequences: list[Sequence]) -> None:
        """Add new sequences to the scheduler's request queue."""
        busy = {s.tenant for s in (*self.running, *self.prefilling)}
        for sequence in sequences:
            self._arrivals += 1
            sequence.arrival = self._arrivals
            sequence.tokens = list(sequence.prompt)
            self.waiting.push(sequence, busy)

    # ---- one step

    def schedule(self) -> SchedulerOutput:
        """Plan the next step, and assign the slots, blocks and rows that the step needs."""
        plan = SchedulerOutput(0, [], [], [], [])
        if self._allocate_for_decode(plan):
            self._admit_waiting(plan)
        self._schedule_prefill(plan)
        return plan

    def _allocate_for_decode(self, plan: SchedulerOutput) -> bool:
        """Allocate a KV-cache block for every row whose next position begins a new block. Preempt sequences if no block is
        available.

        `_allocate_for_decode` returns False if a sequence was preempted.
        """
        before = self.preemptions
        n = len(self.running)
        for row in np.flatnonzero(self.rows.position[:n] % BLOCK == 0).tolist():
            sequence = self.running[row]
            length = int(self.rows.position[row]) + 1
            while sequence.slot >= 0 and not self.kv_cache.allocate_up_to(sequence, length):
                self._preempt(self._lowest_ranked_sequence(), plan)
        self._remove_preempted_rows()
        return self.preemptions == before

    def _lowest_ranked_sequence(self) -> Sequence:
        """Return the sequence to preempt first: the sequence with the lowest priority. Ties go to the tenant with the most
        slots, then to the latest arrival."""
        slots = self._slots_by_tenant()
        running = (s for s in (*self.running, *self.prefilling) if s.slot >= 0)
        return max(running, key=lambda s: (-s.priority, slots[s.tenant], s.arrival))

    def _slots_by_tenant(self) -> Counter[str]:
        """Return the number of slots of each tenant."""
        return Counter(s.tenant for s in self._sequences_with_slot() if s.slot >= 0)

    def _preempt(self, sequence: Sequence, plan: SchedulerOutput) -> None:
        """Preempt a sequence: free the sequence's slot and blocks, and queue the sequence again. If the preempted sequence had
        a row, the caller must call `_remove_preempted_rows`."""
        self.preemptions += 1
        if sequence in self.prefilling:
            self.prefilling.remove(sequence)
            self._requeue(sequence.followers, plan)
            sequence.followers = []
        else:
            row = self.running.index(sequence)
            length = int(self.rows.position[row]) + 1
            self.waiting.charge(sequence.tenant, 0, self._n_sampled_tokens(row))
            sequence.tokens, sequence.num_computed_tokens = self.history.tokens(sequence.slot, length), length - 1
            sequence.saved = self.history.save(sequence.slot, len(sequence.prompt), length)
        # Cache the blocks before releasing them: if they are not evicted, resuming costs almost nothing.
        self.kv_cache.cache_blocks(sequence, sequence.num_computed_tokens)
        self.kv_cache.release(sequence)
        self._requeue([sequence], plan)

    def _requeue(self, sequences: list[Sequence], plan: SchedulerOutput | None) -> None:
        for sequence in sequences:
            self._free.append(sequence.slot)
            sequence.slot, sequence.num_computed_tokens = -1, 0
            if plan is not None and sequence in plan.admitted:
                plan.admitted.remove(sequence)
            self.waiting.requeue(sequence)

    def _remove_preempted_rows(self) -> None:
        """Remove the rows of preempted sequences from the batch."""
        gone = [row for row, sequence in enumerate(self.running) if sequence.slot < 0]
        if gone:
            self._remove_rows(np.array(gone, np.int64))

    def _admit_waiting(self, plan: SchedulerOutput) -> None:
        if not self.waiting:
            return
        leaders = {s.prefill_key: s for s in self.prefilling}
        while self.waiting:
            sequence = self.waiting.next_sequence(self._sampled_tokens_by_tenant())
            if not self._free:
                if not self._preempt_for(sequence, plan):
                    return
                continue  # after the preemption, another sequence may come first
            key = sequence.prefill_key
            leader = leaders.get(key)
            if leader is not None and leader.slot >= 0 and not leader.stale:
                self._give_slot(sequence, plan)
                leader.followers.append(sequence)
                continue
            hit = self.kv_cache.match(
                sequence, None if sequence.scores is None else sequence.scores.n_reusable_positions
            )
            # Reserve one block per row, so that admitting a sequence does not force a preemption in the next step.
            needed = -(-len(sequence.tokens) // BLOCK) - len(sequence.blocks) + len(self.running) + len(self.prefilling)
            if self.kv_cache.pool.n_available_blocks < needed and (self.running or self.prefilling):
                self.kv_cache.release(sequence)
                if not self._preempt_for(sequence, plan):
                    return
                continue
            self._give_slot(sequence, plan)
            sequence.num_computed_tokens = hit
            self._count_cache_hits(sequence, hit)
            self.prefilling.append(sequence)
            leaders[key] = sequence

    def _count_cache_hits(self, sequence: Sequence, hit: int) -> None:
        """Count the prefix-cache hits and misses of a sequence when it is first admitted."""
        if sequence.hit < 0:
            sequence.hit = hit
            self.kv_cache.hit_tokens += hit
            self.kv_cache.miss_tokens += len(sequence.prompt) - hit

    def _give_slot(self, sequence: Sequence, plan: SchedulerOutput) -> None:
        self.waiting.pop(sequence)
        sequence.slot = self._free.pop()
        plan.admitted.append(sequence)

    def _preempt_for(self, sequence: Sequence, plan: SchedulerOutput) -> bool:
        """Preempt a running sequence in favour of the queued `sequence`. `_preempt_for` returns False if no running sequence
        may be preempted."""
        victim = self._choose_victim(sequence)
        if victim is None:
            return False
        self._preempt(victim, plan)
        self._remove_preempted_rows()
        return True

    def _choose_victim(self, sequence: Sequence) -> Sequence | None:
        """Return the sequence to preempt in favour of the queued `sequence`, or None.

        If a sequence of lower priority has a slot, the victim is the sequence that `_lowest_ranked_sequence` returns. If no
        sequence of lower priority has a slot, the candidates belong to tenants that may lose a slot
        (`RequestQueue.tenants_to_preempt`). A candidate for preemption has the same priority as `sequence` and has decoded at
        least `QUANTUM` tokens in its row. The victim is the candidate whose tenant has the most slots. Ties between candidates
        go to the candidate with the most decoded tokens. If there is no such candidate, the victim is in prefill: the sequence
        with the fewest computed tokens, of a tenant with several slots. So each tenant's most advanced prompt is completed.
        """
        if min(s.priority for s in (*self.running, *self.prefilling)) < sequence.priority:
            return self._lowest_ranked_sequence()
        slots = self._slots_by_tenant()
        if slots.keys() == {sequence.tenant}:
            return None
        tenants = self.waiting.tenants_to_preempt(sequence.tenant, slots, self._sampled_tokens_by_tenant())
        candidates = [
            (slots[s.tenant], self._n_sampled_tokens(row), row)
            for row, s in enumerate(self.running)
            if s.tenant in tenants and s.priority == sequence.priority and self._n_sampled_tokens(row) >= QUANTUM
        ]
        if candidates:
            return self.running[max(candidates)[2]]
        prompts = [
            s
            for s in self.prefilling
            if s.tenant in tenants and s.priority == sequence.priority and slots[s.tenant] > 1
        ]
        return min(prompts, key=lambda s: (s.num_computed_tokens, -s.arrival), default=None)

    def _sampled_tokens_by_tenant(self) -> dict[str, float]:
        """Return, for each tenant with a slot, the number of tokens that the tenant's sequences have decoded in their current
        rows."""
        served = dict.fromkeys((s.tenant for s in self._sequences_with_slot()), 0.0)
        for row, sequence in enumerate(self.running):
            served[sequence.tenant] += self._n_sampled_tokens(row)
        return served

    def _schedule_prefill(self, plan: SchedulerOutput) -> None:
        """Divide the step's remaining token budget among the sequences in prefill. Sequences with a completed prompt get rows
        of the batch."""
        plan.decode = len(self.running)
        budget = max(self.step_tokens - plan.decode, QUERIES)
        if self.running and len({s.tenant for s in (*self.running, *self.prefilling)}) > 1:
            budget = min(budget, max(PREFILL_BESIDE_OTHERS, self.step_tokens // 8))
        completed: list[PrefillChunk] = []
        order = round_robin(self.prefilling)
        for index, sequence in enumerate(order):
            if sequence.slot < 0 or budget <= 0:
                continue
            scored = sequence.scores is not None and sequence.scores.n_reusable_positions is not None
            cost = SCORED_TOKEN_COST if scored else 1
            share = min(max(QUERIES, budget // (len(order) - index) // cost), budget)
            stop = min(sequence.num_computed_tokens + share, len(sequence.tokens))
            if not self._allocate_for_chunk(sequence, stop, order[index + 1 :], plan):
                continue
            chunk = PrefillChunk(sequence, sequence.num_computed_tokens, stop)
            (completed if stop == len(sequence.tokens) else plan.chunks).append(chunk)
            sequence.num_computed_tokens = stop
            left, n_tokens = QUERIES, stop - chunk.start
            if all(other.tenant == sequence.tenant for other in order[index + 1 :]):
                left = 0
            budget = max(budget - cost * n_tokens, min(budget - n_tokens, left))
        for chunk in completed:
            plan.chunks.append(chunk)
            self._start_decoding(chunk.sequence, len(plan.chunks) - 1, plan)

    def _allocate_for_chunk(self, sequence: Sequence, stop: int, later: list[Sequence], plan: SchedulerOutput) -> bool:
        """Allocate the KV-cache blocks of a prefill chunk. Returns False if too few blocks are available.

        If sequences are decoding, the prefill chunk waits for a decoding sequence to finish and free its blocks. If no sequence
        is decoding, sequences in `later` are preempted, starting from the end.
        """
        while not self.kv_cache.allocate_up_to(sequence, stop):
            with_slot = [other for other in later if other.slot >= 0]
            if self.running or not with_slot:
                return False
            self._preempt(with_slot[-1], plan)
        return True

    def _start_decoding(self, sequence: Sequence, chunk: int, plan: SchedulerOutput) -> None:
        """Give rows of the batch to a sequence whose prefill completes in the step, and to the sequence's `followers`, which
        share the prefill."""
        self.prefilling.remove(sequence)
        followers, sequence.followers = sequence.followers, []
        self._add_row(sequence, chunk, plan)
        for follower in followers:
            follower.scores = sequence.scores  # one object for both: this step adds to it
            copied = self.kv_cache.fork_blocks(sequence, follower, len(sequence.tokens))
            if copied is None:
                self._requeue([follower], plan)
                continue
            plan.copies += copied
            follower.num_computed_tokens = sequence.num_computed_tokens
            self._count_cache_hits(follower, (len(follower.prompt) - 1) // BLOCK * BLOCK)
            self._add_row(follower, chunk, plan)

    def _add_row(self, sequence: Sequence, chunk: int, plan: SchedulerOutput) -> None:
        self.rows.fill_row(len(self.running), sequence)
        self.running.append(sequence)
        self.version += 1
        plan.joined.append((sequence, chunk))

    def reserve_steps(self, most: int) -> int:
        """Return how many steps, at most `most`, all rows can decode before one reaches its limit, and allocate their blocks.

        It is 1 if rows need Python between two steps, if other sequences could be scheduled meanwhile, or if blocks are scarce.
        """
        n, rows = len(self.running), self.rows
        steps = min(most, int((rows.limit[:n] - rows.position[:n]).min()) - 1) if rows.plain[:n].all() else 1
        if steps < 2 or self.prefilling or (self.waiting and self._free):
            return 1
        if len({s.tenant for s in (*self.running, *self.waiting)}) > 1:
            return 1
        ends = (rows.position[:n] + steps).tolist()
        missing = sum(max(0, -(-end // BLOCK) - len(s.blocks)) for s, end in zip(self.running, ends, strict=True))
        if missing > self.kv_cache.pool.n_available_blocks:
            return 1
        for sequence, end in zip(self.running, ends, strict=True):
            self.kv_cache.allocate_up_to(sequence, end)
        return steps

    # ---- after a step

    def advance_rows(self, tokens: Ints, stops: Ints) -> Ints:
        """Advance each running row by the row's new token in `tokens` [rows], and return the finished rows, ascending."""
        n, rows = len(self.running), self.rows
        rows.position[:n] += 1
        done = rows.position[:n] + 1 >= rows.limit[:n]
        for stop in stops:
            done |= (tokens == stop) & ~rows.ignore_eos[:n]
        for row in np.flatnonzero(rows.special[:n]).tolist():
            sequence = self.running[row]
            sequence.halted = self._is_stopped(sequence, int(tokens[row]), int(rows.position[row]) + 1)
            done[row] |= sequence.halted
        return np.flatnonzero(done)

    def _is_stopped(self, sequence: Sequence, token: int, length: int) -> bool:
        """Return whether a stop token, a stop string or a completed grammar ends a sequence of `length` tokens."""
        if token in sequence.params.stop_token_ids or (sequence.constraint is not None and sequence.constraint.done):
            return True
        return sequence.is_stopped is not None and sequence.is_stopped(self.history.tokens(sequence.slot, length))

    def release_rows(self, rows: Ints) -> None:
        """Remove the sequences in the rows `rows` (ascending), free the slots and blocks of these sequences, and close the gaps
        in the batch."""
        for row in rows.tolist():
            sequence = self.running[row]
            computed = int(self.rows.position[row])
            self.waiting.charge(sequence.tenant, len(sequence.prompt) - sequence.hit, self._n_sampled_tokens(row))
            if sequence.reuse:
                sequence.tokens = self.history.tokens(sequence.slot, computed)
                self.kv_cache.cache_blocks(sequence, computed)
            self._free_slot(sequence)
        self._remove_rows(rows)

    def _free_slot(self, sequence: Sequence) -> None:
        self.kv_cache.release(sequence)
        self._free.append(sequence.slot)
        sequence.slot = -1

    def _remove_rows(self, rows: Ints) -> None:
        keep = len(self.running) - len(rows)
        self.version += 1
        holes = rows[rows < keep]
        tail = np.arange(keep, len(self.running))
        movers = tail[~np.isin(tail, rows)]
        self.rows.move_rows(holes, movers)
        for hole, mover in zip(holes.tolist(), movers.tolist()):
            self.running[hole] = self.running[mover]
        del self.running[keep:]

    def _n_sampled_tokens(self, row: int) -> int:
        """Return the number of tokens that a sequence has decoded in its current row."""
        return int(self.rows.position[row]) + 1 - len(self.running[row].tokens)

    def cancel(self, request_id: int) -> None:
        """Remove all sequences of the request `request_id`, and free the slots and blocks of these sequences immediately."""
        self.waiting.drop(request_id)
        for leader in list(self.prefilling):
            for follower in [f for f in leader.followers if f.request_id == request_id]:
                leader.followers.remove(follower)
                self._free_slot(follower)
            if leader.request_id == request_id:
                self.prefilling.remove(leader)
                self.kv_cache.cache_blocks(leader, leader.num_computed_tokens)
                self.waiting.charge(leader.tenant, max(0, leader.num_computed_tokens - max(leader.hit, 0)), 0)
                self._free_slot(leader)
                self._requeue(
                    leader.followers, None
                )  # the remaining followers belong to other requests with the same prompt
                leader.followers = []
        rows = [row for row, s in enumerate(self.running) if s.request_id == request_id]
        if rows:
            self.release_rows(np.array(rows, np.int64))

    def invalidate_blocks(self, fingerprint: bytes) -> None:
        """Invalidate all blocks cached under the old weights.

        Running sequences continue with the new weights. The blocks of a running sequence then mix keys and values of the old
        and the new weights. Blocks with keys and values of mixed weights are not cached, so later requests do not share these
        blocks.
        """
        self.kv_cache.invalidate_blocks(fingerprint)
        for sequence in self._sequences_with_slot():
            sequence.reuse, sequence.stale = False, True
        for sequence in self.waiting:
            sequence.keys = []

    def reset(self) -> None:
        """Recover from a failed step: drop all running and queued sequences, and all cached blocks in memory."""
        for sequence in (*self._sequences_with_slot(), *self.waiting):
            sequence.slot, sequence.blocks, sequence.followers = -1, [], []
        self.running, self.prefilling, self.waiting = [], [], RequestQueue()
        self._free = list(range(self.slots - 1, -1, -1))
        self.version += 1
        self.kv_cache.reset()

    def _sequences_with_slot(self) -> list[Sequence]:
        """Return all sequences that have a slot."""
        return [*self.running, *self.prefilling, *(f for s in self.prefilling for f in s.followers)]

    def request_ids(self) -> set[int]:
        """Return the ids of the scheduler's running and queued requests."""
        return {s.request_id for s in (*self._sequences_with_slot(), *self.waiting)}
