"""Who waits, and whose turn it is: the highest priority first, then a tenant of which nothing runs, then the one that
was served least, then the earliest.

Fairness between tenants as in Sheng et al. 2024 ("Fairness in serving large language models", virtual token counter): a tenant's
counter grows by what it is served, a token drawn counts as `DRAWN` tokens of prefill; one that comes back from idleness begins at the least
counter of those that are busy, so that nobody saves up turns.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

DRAWN = 2.0
"""What drawing a token costs, in tokens of prefill."""


class Queued(Protocol):
    """What `RequestQueue` needs of a sequence."""

    request_id: int
    tenant: str
    priority: int
    arrival: int


W = TypeVar("W", bound=Queued)


def in_turn(sequences: Iterable[W]) -> list[W]:
    """By priority; of one priority each tenant's first, then each tenant's second, and so on."""
    before = Counter[tuple[int, str]]()
    places = dict[W, tuple[int, int, int]]()
    for one in sorted(sequences, key=lambda s: (-s.priority, s.arrival)):
        places[one] = (-one.priority, before[one.priority, one.tenant], one.arrival)
        before[one.priority, one.tenant] += 1
    return sorted(places, key=places.__getitem__)


class RequestQueue(Generic[W]):
    """Sequences in queues, one for each tenant."""

    def __init__(self) -> None:
        self._queues: dict[str, list[tuple[int, int, W]]] = {}
        self._counters: dict[str, float] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def highest(self) -> int:
        """The highest priority that waits; somebody must."""
        return max(-queue[0][0] for queue in self._queues.values())

    def push(self, sequence: W, busy: Iterable[str] = ()) -> None:
        """Queue a newcomer. `busy`: tenants of which something runs."""
        tenant = sequence.tenant
        others = {*busy, *(name for name, queue in self._queues.items() if queue)}
        if tenant not in others:
            least = min((self._counters.get(name, 0.0) for name in others), default=0.0)
            self._counters[tenant] = max(self._counters.get(tenant, 0.0), least)
        self.push_back(sequence)

    def push_back(self, sequence: W) -> None:
        """Queue what had been taken, at the place of its arrival."""
        queue = self._queues.setdefault(sequence.tenant, [])
        heapq.heappush(queue, (-sequence.priority, sequence.arrival, sequence))
        self._length += 1

    def next(self, running: Mapping[str, float]) -> W:
        """Whose turn it is; it stays queued. `running`: tokens drawn, but not yet charged, for each tenant of which something runs. One of which
        nothing runs goes first."""
        best = min(
            (queue[0][0], tenant in running, self.usage(tenant, running), queue[0][1], tenant)
            for tenant, queue in self._queues.items()
            if queue
        )
        return self._queues[best[4]][0][2]

    def usage(self, tenant: str, running: Mapping[str, float]) -> float:
        """What a tenant was served, in tokens of prefill; `running` as in `next`."""
        return self._counters.get(tenant, 0.0) + DRAWN * running.get(tenant, 0.0)

    def owing(self, tenant: str, held: Mapping[str, int], running: Mapping[str, float]) -> set[str]:
        """Tenants that must give a slot to `tenant`. `held`: slots of each; `running` as in `next`.

        They have at least as many as it then, or it has none and was served less: they wait for one in their turn.
        """
        mine, used = held.get(tenant, 0), self.usage(tenant, running)
        return {
            other
            for other, slots in held.items()
            if other != tenant
            and ((slots > 1 and not mine) or ((slots > mine + 1 or not mine) and self.usage(other, running) > used))
        }

    def pop(self, sequence: W) -> None:
        """Take the head of a tenant's queue: what `next` said. Its prompt is charged by `charge`."""
        queue = self._queues[sequence.tenant]
        if queue[0][2] is not sequence:
            raise RuntimeError("not the head of its queue")
        heapq.heappop(queue)
        self._length -= 1
        if not queue:
            del self._queues[sequence.tenant]

    def charge(self, tenant: str, prefilled: int, drawn: int) -> None:
        """Charge a tenant for tokens of prefill and tokens drawn."""
        self._counters[tenant] = self._counters.get(tenant, 0.0) + prefilled + DRAWN * drawn

    def __iter__(self) -> Iterator[W]:
        """All that waits, in no order."""
        return (item[2] for queue in self._queues.values() for item in queue)

    def drop(self, request_id: int) -> None:
        """Forget what waits under `request_id`."""
        for tenant, queue in list(self._queues.items()):
            kept = [item for item in queue if item[2].request_id != request_id]
            self._length -= len(queue) - len(kept)
            if not kept:
                del self._queues[tenant]
            elif len(kept) < len(queue):
                heapq.heapify(kept)
                self._queues[tenant] = kept
