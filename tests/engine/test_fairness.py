"""How long one tenant waits behind another: counted in steps, through the scheduler."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tape import Job, Tape, answer, drive, sequence, some_ids

from rorqual.engine.request_queue import DRAWN, round_robin
from rorqual.engine.scheduler import QUANTUM


def job(request_id: int, tenant: str, *, at: int = 0, prompt: int = 20, new: int = 5, priority: int = 0) -> Job:
    return Job(
        sequence(request_id, some_ids(request_id, prompt), new=new, tenant=tenant, priority=priority, endless=True),
        at=at,
    )


def waits(tape: Tape, jobs: list[Job]) -> dict[int, int]:
    """Steps from the one a job comes in to the one that draws its first token; every answer is the one it has alone."""
    first: dict[int, int] = {}
    left = {one.sequence.request_id: one for one in jobs}
    advance = tape.scheduler.advance_rows
    now = [0]

    def seen(*given_: object) -> object:
        for active in tape.scheduler.running:
            first.setdefault(active.request_id, now[0] - left[active.request_id].at)
        return advance(*given_)  # type: ignore[arg-type]

    tape.scheduler.advance_rows = seen  # type: ignore[method-assign, assignment]

    def after(step: int) -> None:
        now[0] = step + 1

    ended = drive(tape, jobs, after).ended
    assert {request_id: ended[request_id] for request_id in left} == {
        request_id: answer(one.sequence) for request_id, one in left.items()
    }
    return first


def test_slots_are_shared_out_evenly_and_no_further() -> None:
    tape = Tape(6, 100, step_tokens=600)
    for t in range(12):
        tape.scheduler.submit([job(t, "abc"[t // 4], new=100).sequence])
        if t == 3:
            for _ in range(QUANTUM + 2):
                tape.step()
    for _ in range(QUANTUM):
        tape.step()
        held = [s.tenant for s in tape.scheduler.running]
    assert sorted(held) == ["a", "a", "b", "b", "c", "c"]
    before = tape.scheduler.preemptions
    for _ in range(2 * QUANTUM):
        tape.step()
    assert tape.scheduler.preemptions == before, "shares are even: nobody gains by another's loss"


def test_long_prompts_in_all_slots_do_not_delay_the_prompt_of_another_tenant() -> None:
    """The tenant gives up its least advanced prompts, and each of its answers stays the one that it has alone."""
    long = [job(t, "long", prompt=900, new=3) for t in range(16)]
    short = [job(100 + t, "short", at=4, new=2) for t in range(3)]
    tape = Tape(4, 400, step_tokens=64)
    first = waits(tape, [*long, *short])
    assert max(first[100 + t] for t in range(2)) <= 2, "half of the slots"
    assert 1 <= tape.scheduler.preemptions <= 6
    one = Tape(1, 400, step_tokens=64)
    assert waits(one, [*long[:1], *short])[100] > 10 and not one.scheduler.preemptions, (
        "one slot is not taken in prefill"
    )


def test_fairness_takes_nothing_from_a_higher_priority() -> None:
    flood = [job(t, "flood", new=60, priority=1) for t in range(4)]
    calm = job(100, "calm", at=20)
    tape = Tape(2, 100, step_tokens=600)
    assert waits(tape, [*flood, calm])[100] >= 80 and tape.scheduler.preemptions == 0
    flood = [job(t, "flood", new=60, priority=-1) for t in range(4)]
    assert waits(Tape(2, 100, step_tokens=600), [*flood, calm])[100] <= 1, "a lower one yields at once"


@pytest.mark.parametrize("blocks", [4, 9, 40])
def test_whoever_is_preempted_draws_a_quantum_before_it_is_again(blocks: int) -> None:
    """A stream of newcomers holds nobody up for ever, also where nothing of the preempted is left in the cache."""
    long = [job(t, "long", prompt=60, new=100) for t in range(2)]
    short = [job(100 + t, f"short {t}", at=3 * t, new=2) for t in range(60)]
    tape = Tape(1, blocks, step_tokens=16)
    waits(tape, [*long, *short])  # all of them end
    assert 2 <= tape.scheduler.preemptions <= 2 * (100 // QUANTUM)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**9))
def test_no_tenant_with_nothing_running_waits_for_longer_than_prompts_take_and_a_quantum(seed: int) -> None:
    rng = random.Random(seed)
    slots, step_tokens = rng.randrange(2, 6), rng.choice((64, 200))
    tenants = [f"t{i}" for i in range(rng.randrange(2, slots + 1))]
    jobs, longest = [], 30
    for request_id in range(rng.randrange(4, 24)):
        tenant = tenants[0] if rng.random() < 0.6 else rng.choice(tenants[1:])
        jobs.append(
            job(request_id, tenant, at=rng.randrange(60), prompt=rng.randrange(1, longest), new=rng.choice((2, 20, 70)))
        )
    tape = Tape(slots, 100, step_tokens=step_tokens)
    feeding = slots * -(-slots * longest // step_tokens)  # every row's prompt, and again when it is resumed
    bound = QUANTUM + 2 * feeding + 2
    idle: dict[str, int] = {}
    wrong: list[tuple[int, str, int]] = []

    def after(step: int) -> None:
        scheduler = tape.scheduler
        seated = {s.tenant for s in scheduler._sequences_with_slot()}
        for tenant in tenants:
            waiting = any(s.tenant == tenant for s in scheduler.waiting)
            idle[tenant] = idle.get(tenant, 0) + 1 if waiting and tenant not in seated else 0
            if idle[tenant] > bound:
                wrong.append((step, tenant, idle[tenant]))

    seen = drive(tape, jobs, after)
    assert len(seen.ended) == len(jobs) and not wrong
    assert all(seen.ended[one.sequence.request_id] == answer(one.sequence) for one in jobs)


def test_what_was_drawn_before_a_preemption_is_charged() -> None:
    """Each token once, however often its sequence was preempted."""
    tape = Tape(1, 100, step_tokens=600)
    waits(tape, [job(t, "ab"[t], prompt=20, new=50) for t in (0, 1)])
    assert tape.scheduler.preemptions >= 2
    assert [tape.scheduler.waiting.tenant_usage(tenant, {}) for tenant in "ab"] == [20 + DRAWN * 50] * 2


def test_prompts_of_several_tenants_are_fed_in_turn() -> None:
    given_ = [
        job(t, tenant, priority=p).sequence for t, (tenant, p) in enumerate([("a", 0), ("a", 0), ("b", 0), ("a", 1)])
    ]
    for number, one in enumerate(given_):
        one.arrival = number
    assert [s.request_id for s in round_robin(given_)] == [3, 0, 2, 1]
