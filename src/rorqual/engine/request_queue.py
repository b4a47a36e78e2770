"""The queue of waiting sequences, with priorities and fairness between tenants.

The waiting sequence with the highest priority runs next. Among sequences of equal priority, a sequence whose tenant has no
running sequences comes first, then the sequence whose tenant received the least service, then the sequence that arrived
earliest.

Fairness follows the virtual token counter of Sheng et al. 2024 ("Fairness in serving large language models"). A tenant's token
counter grows by one per prefill token and by `DRAWN` per sampled token. When an idle tenant becomes active again, the tenant's
counter is raised to the lowest counter of the active tenants. Idle time therefore gives a tenant no advantage.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from rorqual.engine.sequence import Sequence

DRAWN = 2.0
"""Cost of one sampled token, in units of one prefill token."""


def round_robin(sequences: Iterable[Sequence]) -> list[Sequence]:
    """Sort sequences by priority, and round-robin over tenants within a priority.

    Among sequences of one priority, the first sequence of each tenant comes first, then the second sequence of each tenant, and
    so on.
    """
    counts = Counter[tuple[int, str]]()
    sort_keys = dict[Sequence, tuple[int, int, int]]()
    for sequence in sorted(sequences, key=lambda s: (-s.priority, s.arrival)):
        sort_keys[sequence] = (-sequence.priority, counts[sequence.priority, sequence.tenant], sequence.arrival)
        counts[sequence.priority, sequence.tenant] += 1
    return sorted(sort_keys, key=sort_keys.__getitem__)


class RequestQueue:
    """Waiting sequences, in one queue per tenant."""

    def __init__(self) -> None:
        self._queues: dict[str, list[tuple[int, int, Sequence]]] = {}
        self._counters: dict[str, float] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, sequence: Sequence, busy: Iterable[str] = ()) -> None:
        """Queue a new sequence. `busy` lists the tenants with running sequences."""
        tenant = sequence.tenant
        active = {*busy, *(name for name, queue in self._queues.items() if queue)}
        if tenant not in active:
            least = min((self._counters.get(name, 0.0) for name in active), default=0.0)
            self._counters[tenant] = max(self._counters.get(tenant, 0.0), least)
        self.requeue(sequence)

    def requeue(self, sequence: Sequence) -> None:
        """Requeue a preempted sequence. The queue is ordered by priority, then by time of arrival."""
        queue = self._queues.setdefault(sequence.tenant, [])
        heapq.heappush(queue, (-sequence.priority, sequence.arrival, sequence))
        self._length += 1

    def next_sequence(self, running: Mapping[str, float]) -> Sequence:
        """Return the sequence to run next, but do not remove the sequence from the queue.

        `running` has one entry per tenant with running sequences: the number of sampled tokens that are not yet charged to the tenant.
        """
        best = min(
            (queue[0][0], tenant in running, self.tenant_usage(tenant, running), queue[0][1], tenant)
            for tenant, queue in self._queues.items()
            if queue
        )
        return self._queues[best[4]][0][2]

    def tenant_usage(self, tenant: str, running: Mapping[str, float]) -> float:
        """Return the service that a tenant has received, in units of one prefill token. `running` has the same meaning
        as in `next_sequence`."""
        return self._counters.get(tenant, 0.0) + DRAWN * running.get(tenant, 0.0)

    def tenants_to_preempt(self, tenant: str, held: Mapping[str, int], running: Mapping[str, float]) -> set[str]:
        """Return the tenants that may lose a slot to `tenant`. `held` counts the slots of each tenant. `running` has the same
        meaning as in `next_sequence`.

        If `tenant` has no slot, `tenant` can take a slot from any tenant that has several slots or received more service. If
        `tenant` has slots, `tenant` can take a slot only from a tenant that received more service and has at least two more
        slots than `tenant`.
        """
        own_slots, own_usage = held.get(tenant, 0), self.tenant_usage(tenant, running)
        return {
            other
            for other, slots in held.items()
            if other != tenant
            and (
                (slots > 1 and not own_slots)
                or ((slots > own_slots + 1 or not own_slots) and self.tenant_usage(other, running) > own_usage)
            )
        }

    def pop(self, sequence: Sequence) -> None:
        """Remove the sequence that `next_sequence` returned. The caller must later `charge` the sequence's prompt to its
        tenant."""
        queue = self._queues[sequence.tenant]
        if queue[0][2] is not sequence:
            raise RuntimeError("the sequence is not the head of its tenant's queue")
        heapq.heappop(queue)
        self._length -= 1
        if not queue:
            del self._queues[sequence.tenant]

    def charge(self, tenant: str, prefilled: int, drawn: int) -> None:
        """Add `prefilled` prefill tokens and `drawn` sampled tokens to a tenant's token counter."""
        self._counters[tenant] = self._counters.get(tenant, 0.0) + prefilled + DRAWN * drawn

    def __iter__(self) -> Iterator[Sequence]:
        """Iterate over the queued sequences, in no particular order."""
        return (item[2] for queue in self._queues.values() for item in queue)

    def drop(self, request_id: int) -> None:
        """Remove the queued sequences of the request `request_id`."""
        for tenant, queue in list(self._queues.items()):
            remaining = [item for item in queue if item[2].request_id != request_id]
            self._length -= len(queue) - len(remaining)
            if not remaining:
                del self._queues[tenant]
            elif len(remaining) < len(queue):
                heapq.heapify(remaining)
                self._queues[tenant] = remaining
