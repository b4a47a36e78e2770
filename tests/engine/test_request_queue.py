"""Whose turn it is: priorities, fairness between tenants, order within one. And what a flood does to the others, through the scheduler."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tape import Job, Tape, drive, sequence, some_ids

from rorqual.engine.request_queue import DRAWN, RequestQueue


@dataclass(eq=False)
class One:
    request_id: int
    tenant: str = ""
    priority: int = 0
    arrival: int = 0
    fed: int = 10
    drawn: int = 10


def take(waiting: RequestQueue[One], running: dict[str, float] | None = None) -> One:
    one = waiting.next(running or {})
    waiting.pop(one)
    return one


def serve(waiting: RequestQueue[One]) -> One:
    one = take(waiting)
    waiting.charge(one.tenant, one.fed, one.drawn)
    return one


ones = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(-1, 2), st.integers(1, 50), st.integers(1, 50)), max_size=40
)


def queued(given_: list[tuple[str, int, int, int]]) -> tuple[RequestQueue[One], list[One]]:
    every = [One(i, tenant, priority, i, fed, drawn) for i, (tenant, priority, fed, drawn) in enumerate(given_)]
    waiting: RequestQueue[One] = RequestQueue()
    for one in every:
        waiting.push(one)
    return waiting, every


@settings(deadline=None)
@given(given_=ones)
def test_everybody_has_a_turn_and_of_one_tenant_in_the_order_of_rank(given_: list[tuple[str, int, int, int]]) -> None:
    waiting, every = queued(given_)
    assert len(waiting) == len(every) and {one.request_id for one in waiting} == {one.request_id for one in every}
    served = [serve(waiting) for _ in every]
    assert len(waiting) == 0 and not {one.request_id for one in waiting}
    assert sorted(one.request_id for one in served) == [one.request_id for one in every]
    assert [one.priority for one in served] == sorted((one.priority for one in every), reverse=True)
    for tenant in "abc":
        mine = [(-one.priority, one.arrival) for one in served if one.tenant == tenant]
        assert mine == sorted(mine)


def test_a_tenant_that_comes_back_is_forgiven_nothing_and_given_nothing() -> None:
    """One that was served much pays for it still; one that was served little stands where the least of those who wait does."""
    waiting: RequestQueue[One] = RequestQueue()
    waiting.charge("much", 1000, 0)
    waiting.charge("some", 10, 0)
    waiting.push(One(0, "some"))
    waiting.push(One(1, "much"))
    waiting.push(One(2, "new"))
    assert [waiting.usage(tenant, {}) for tenant in ("much", "some", "new")] == [1000, 10, 10]


@settings(deadline=None)
@given(
    costs=st.lists(st.tuples(st.integers(1, 100), st.integers(1, 100)), min_size=60, max_size=60),
    flood=st.integers(2, 20),
)
def test_a_flood_takes_no_more_than_its_share(costs: list[tuple[int, int]], flood: int) -> None:
    """While both wait, what two tenants were served never differs by more than one request of each."""
    waiting: RequestQueue[One] = RequestQueue()
    for number, (fed, drawn) in enumerate(costs):
        waiting.push(One(number, "flood" if number % (flood + 1) else "calm", 0, number, fed, drawn))
    largest = max(fed + DRAWN * drawn for fed, drawn in costs)
    served = Counter({"flood": 0.0, "calm": 0.0})
    left = Counter(one for one in ("flood" if number % (flood + 1) else "calm" for number in range(60)))
    while min(left.values()) > 0:
        one = serve(waiting)
        left[one.tenant] -= 1
        served[one.tenant] += one.fed + DRAWN * one.drawn
        assert abs(served["flood"] - served["calm"]) <= largest


@settings(deadline=None)
@given(given_=ones, data=st.data())
def test_what_leaves_or_comes_back_disturbs_nobody(
    given_: list[tuple[str, int, int, int]], data: st.DataObject
) -> None:
    waiting, every = queued(given_)
    gone = set(data.draw(st.lists(st.integers(0, max(0, len(every) - 1)), max_size=10))) & {o.request_id for o in every}
    for request_id in sorted(gone):
        waiting.drop(request_id)
        assert request_id not in {one.request_id for one in waiting}
    waiting.drop(999)
    if len(waiting):
        waiting.push_back(take(waiting))
    served = [serve(waiting).request_id for _ in range(len(waiting))]
    assert sorted(served) == sorted({one.request_id for one in every} - gone)


def test_idleness_saves_up_no_turns() -> None:
    waiting: RequestQueue[One] = RequestQueue()
    for number in range(10):
        waiting.push(One(number, "busy", 0, number))
        serve(waiting)
    for number in range(10, 16):
        waiting.push(One(number, "busy", 0, number))
    for number in range(16, 22):
        waiting.push(One(number, "late", 0, number))
    first = [serve(waiting).tenant for _ in range(6)]
    assert Counter(first) == {"busy": 3, "late": 3}


def test_what_runs_counts_before_it_is_charged() -> None:
    waiting: RequestQueue[One] = RequestQueue()
    waiting.push(One(0, "a", 0, 0))
    waiting.push(One(1, "b", 0, 1))
    assert waiting.next({}).tenant == "a" and waiting.next({"a": 1.0}).tenant == "b"


def test_only_the_head_is_taken() -> None:
    waiting, every = queued([("a", 0, 1, 1), ("a", 0, 1, 1)])
    with pytest.raises(RuntimeError):
        waiting.pop(every[1])


def test_through_the_scheduler_one_who_floods_does_not_hold_up_another() -> None:
    """Sixty requests of one tenant, then six of another: those do not wait for the sixty."""
    rng = random.Random(0)

    def job(request_id: int, tenant: str, at: int) -> Job:
        prompt = tuple(rng.randrange(2, 40) for _ in range(20))
        return Job(sequence(request_id, prompt, new=10, tenant=tenant, endless=True), at)

    flood = [job(t, "flood", 0) for t in range(60)]
    calm = [job(100 + t, "calm", 5) for t in range(6)]
    seen = drive(Tape(4, 30, step_tokens=200), [*flood, *calm])
    last = max(seen.order.index(j.sequence.request_id) for j in calm)
    assert last < 20, "twelve of the flood at most, and what ran already"
    assert len(seen.ended) == 66


def test_whose_requests_all_run_is_busy() -> None:
    """One who comes then begins at its counter, though none of it waits."""
    waiting: RequestQueue[One] = RequestQueue()
    for number in range(10):
        waiting.push(One(number, "served", 0, number))
        serve(waiting)
    for number in range(10, 14):
        waiting.push(One(number, "new", 0, number), busy={"served"})
    for number in range(14, 18):
        waiting.push(One(number, "served", 0, number), busy={"served"})
    assert Counter(serve(waiting).tenant for _ in range(4)) == {"served": 2, "new": 2}


def test_through_the_scheduler_a_newcomer_has_no_turns_of_the_time_before_it_came() -> None:
    """Eleven requests of one tenant, the last of which runs when another comes: from there on they alternate."""

    def job(request_id: int, tenant: str, at: int) -> Job:
        return Job(sequence(request_id, some_ids(request_id, 10), new=10, tenant=tenant, endless=True), at)

    served = [job(t, "served", 0) for t in range(11)]
    both = [job(100 + t, "new", 105) for t in range(5)] + [job(200 + t, "served", 106) for t in range(5)]
    seen = drive(Tape(1, 30, step_tokens=200), [*served, *both])
    assert seen.order[:10] == list(range(10)), "the last one runs at step 105"
    of_the_next = Counter(request_id // 100 for request_id in seen.order[11:17])
    assert of_the_next[1] in (3, 4), "what the running request still costs is charged to its tenant"
