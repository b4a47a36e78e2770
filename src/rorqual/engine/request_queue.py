"""The queue of waiting sequences, with priorities and fairness between tenants.

The next sequence is the one with the highest priority. Ties go to a tenant without running sequences, then to the
tenant served least, then to the earliest arrival.

Fairness follows the virtual token counter of Sheng et al. 2024 ("Fairness in serving large language models"). The
counter of a tenant grows with its service: one per prefill token and `DRAWN` per sampled token. A tenant that returns
from idleness starts at the lowest counter of the busy tenants, so idle time earns no credit.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

DRAWN = 2.0
"""Cost of sampling one token, in prefill tokens."""


class Queued(Protocol):
    """The fields of a sequence that `RequestQueue` reads."""

    request_id: int
    tenant: str
    priority: int
    arrival: int


W = TypeVar("W", bound=Queued)


def in_turn(sequences: Iterable[W]) -> list[W]:
    """Sort by priority, and round-robin over tenants within a priority: the first of each tenant, then the second of
    each."""
    before = Counter[tuple[int, str]]()
    places = dict[W, tuple[int, int, int]]()
    for one in sorted(sequences, key=lambda s: (-s.priority, s.arrival)):
        places[one] = (-one.priority, before[one.priority, one.tenant], one.arrival)
        before[one.priority, one.tenant] += 1
    return sorted(places, key=places.__getitem__)


class RequestQueue(Generic[W]):
    """Waiting sequences, in one queue per tenant."""

    def __init__(self) -> None:
        self._queues: dict[str, list[tuple[int, int, W]]] = {}
        self._counters: dict[str, float] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def highest(self) -> int:
        """The highest priority of a waiting sequence. The queue must not be empty."""
        return max(-queue[0][0] for queue in self._queues.values())

    def push(self, sequence: W, busy: Iterable[str] = ()) -> None:
        """Queue a new sequence. `busy`: tenants with running sequences."""
        tenant = sequence.tenant
        others = {*busy, *(name for name, queue in self._queues.items() if queue)}
        if tenant not in others:
            least = min((self._counters.get(name, 0.0) for name in others), default=0.0)
            self._counters[tenant] = max(self._counters.get(tenant, 0.0), least)
        self.push_back(sequence)

    def push_back(self, sequence: W) -> None:
        """Queue a preempted sequence again, at the place of its first arrival."""
        queue = self._queues.setdefault(sequence.tenant, [])
        heapq.heappush(queue, (-sequence.priority, sequence.arrival, sequence))
        self._length += 1

    def next(self, running: Mapping[str, float]) -> W:
        """Return the sequence to run next, which stays queued.

        `running` holds the tokens sampled but not yet charged, for each tenant with running sequences.
        A tenant without running sequences goes first.
        """
        best = min(
            (queue[0][0], tenant in running, self.usage(tenant, running), queue[0][1], tenant)
            for tenant, queue in self._queues.items()
            if queue
        )
        return self._queues[best[4]][0][2]

    def usage(self, tenant: str, running: Mapping[str, float]) -> float:
        """Return the service that a tenant has received, in prefill tokens. `running` is as in `next`."""
        return self._counters.get(tenant, 0.0) + DRAWN * running.get(tenant, 0.0)

    def owing(self, tenant: str, held: Mapping[str, int], running: Mapping[str, float]) -> set[str]:
        """Return the tenants that must give up a slot for `tenant`. `held` counts slots per tenant; `running` is as in
        `next`.

        A tenant with several slots gives one to a tenant without any. A tenant that was served more than `tenant` gives
        one if it still has at least as many afterwards, or if `tenant` has none.
        """
        mine, used = held.get(tenant, 0), self.usage(tenant, running)
        return {
            other
            for other, slots in held.items()
            if other != tenant
            and ((slots > 1 and not mine) or ((slots > mine + 1 or not mine) and self.usage(other, running) > used))
        }

    def pop(self, sequence: W) -> None:
        """Remove the sequence that `next` returned. This charges nothing: call `charge` for its prompt."""
        queue = self._queues[sequence.tenant]
        if queue[0][2] is not sequence:
            raise RuntimeError("the sequence is not the head of its tenant's queue")
        heapq.heappop(queue)
        self._length -= 1
        if not queue:
            del self._queues[sequence.tenant]

    def charge(self, tenant: str, prefilled: int, drawn: int) -> None:
        """Charge a tenant for prefill tokens and sampled tokens."""
        self._counters[tenant] = self._counters.get(tenant, 0.0) + prefilled + DRAWN * drawn

    def __iter__(self) -> Iterator[W]:
        """Iterate over the waiting sequences, in no particular order."""
        return (item[2] for queue in self._queues.values() for item in queue)

    def drop(self, request_id: int) -> None:
        """Remove the waiting sequences of `request_id`."""
        for tenant, queue in list(self._queues.items()):
            kept = [item for item in queue if item[2].request_id != request_id]
            self._length -= len(queue) - len(kept)
            if not kept:
                del self._queues[tenant]
            elif len(kept) < len(queue):
                heapq.heapify(kept)
                self._queues[tenant] = kept
