"""Whose turn it is: priorities, fairness between tenants, order within one. And what a flood does to the others, through the scheduler."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from tape import sequence

from rorqual.engine.request_queue import DRAWN, RequestQueue
from rorqual.engine.sequence import Sequence


def one_of(
    number: int, tenant: str = "", priority: int = 0, arrival: int = 0, fed: int = 10, drawn: int = 10
) -> Sequence:
    """A sequence whose prompt has `fed` tokens and whose reply has `drawn`."""
    return sequence(number, (5,) * fed, new=drawn, tenant=tenant, priority=priority, arrival=arrival)


def serve(waiting: RequestQueue) -> Sequence:
    one = waiting.next_sequence({})
    waiting.pop(one)
    waiting.charge(one.tenant, len(one.prompt), one.params.max_tokens)
    return one


ones = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(-1, 2), st.integers(1, 50), st.integers(1, 50)), max_size=40
)


def queued(given_: list[tuple[str, int, int, int]]) -> tuple[RequestQueue, list[Sequence]]:
    every = [one_of(i, tenant, priority, i, fed, drawn) for i, (tenant, priority, fed, drawn) in enumerate(given_)]
    waiting = RequestQueue()
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
    waiting = RequestQueue()
    waiting.charge("much", 1000, 0)
    waiting.charge("some", 10, 0)
    waiting.push(one_of(0, "some"))
    waiting.push(one_of(1, "much"))
    waiting.push(one_of(2, "new"))
    assert [waiting.tenant_usage(tenant, {}) for tenant in ("much", "some", "new")] == [1000, 10, 10]


@settings(deadline=None)
@given(
    costs=st.lists(st.tuples(st.integers(1, 100), st.integers(1, 100)), min_size=60, max_size=60),
    flood=st.integers(2, 20),
)
def test_a_flood_takes_no_more_than_its_share(costs: list[tuple[int, int]], flood: int) -> None:
    """While both wait, what two tenants were served never differs by more than one request of each."""
    waiting = RequestQueue()
    for number, (fed, drawn) in enumerate(costs):
        waiting.push(one_of(number, "flood" if number % (flood + 1) else "calm", 0, number, fed, drawn))
    largest = max(fed + DRAWN * drawn for fed, drawn in costs)
    served = Counter({"flood": 0.0, "calm": 0.0})
    left = Counter(one for one in ("flood" if number % (flood + 1) else "calm" for number in range(60)))
    while min(left.values()) > 0:
        one = serve(waiting)
        left[one.tenant] -= 1
        served[one.tenant] += len(one.prompt) + DRAWN * one.params.max_tokens
        assert abs(served["flood"] - served["calm"]) <= largest


def test_whose_requests_all_run_is_busy() -> None:
    """One who comes then begins at its counter, though none of it waits."""
    waiting = RequestQueue()
    for number in range(10):
        waiting.push(one_of(number, "served", 0, number))
        serve(waiting)
    for number in range(10, 14):
        waiting.push(one_of(number, "new", 0, number), busy={"served"})
    for number in range(14, 18):
        waiting.push(one_of(number, "served", 0, number), busy={"served"})
    assert Counter(serve(waiting).tenant for _ in range(4)) == {"served": 2, "new": 2}
