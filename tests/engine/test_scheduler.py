"""Which sequence runs where: nobody is lost, rows stay contiguous, equal prompts share a leader."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rorqual.engine.request import SamplingParams
from rorqual.engine.scheduler import Scheduler, Sequence

STOPS = np.array([1])


def sequence(ticket: int, prompt: tuple[int, ...] = (5, 6), *, new: int = 3, key: int = 0) -> Sequence:
    return Sequence(ticket, 0, prompt, SamplingParams(max_tokens=new), key, len(prompt) + new)


@settings(deadline=None)
@given(
    slots=st.integers(1, 9),
    jobs=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), max_size=30),
    data=st.data(),
)
def test_every_sequence_runs_its_length_in_its_own_slot(
    slots: int, jobs: list[tuple[int, int]], data: st.DataObject
) -> None:
    scheduler = Scheduler(slots)
    sequences = [sequence(t, tuple(range(length)), new=new, key=t) for t, (length, new) in enumerate(jobs)]
    scheduler.submit(sequences)
    given_: dict[int, int] = {}
    ended: list[int] = []
    while not scheduler.idle:
        scheduler.admit()
        n = len(scheduler.active)
        assert 0 < n <= slots
        assert len({s.slot for s in scheduler.active}) == n
        rows = scheduler.rows
        for row, s in enumerate(scheduler.active):  # the arrays belong to the sequence in the row
            assert rows.key[row] == s.key
            assert rows.slot[row] == s.slot
            assert rows.position[row] == len(s.prompt) - 1 + given_.get(s.ticket, 0)
            given_[s.ticket] = given_.get(s.ticket, 0) + 1
        tokens = np.array([1 if data.draw(st.booleans()) else 2 for _ in range(n)]) if n < 3 else np.full(n, 2)
        done = scheduler.advance(tokens, STOPS)
        for row, s in enumerate(scheduler.active):
            assert (row in done) == (given_[s.ticket] == s.params.max_tokens or tokens[row] == 1)
        ended += [scheduler.active[row].ticket for row in done]
        scheduler.release(done)
    assert sorted(ended) == list(range(len(jobs)))


def test_equal_prompts_stand_behind_one_leader_each_shortest_first() -> None:
    scheduler = Scheduler(8)
    prompts = [(1, 2, 3), (1, 2, 3), (4,), (4,), (7, 8)]
    scheduler.submit([sequence(t, p) for t, p in enumerate(prompts)])
    assert [s.prompt for s in scheduler.admit()] == [(4,), (7, 8), (1, 2, 3), (1, 2, 3), (4,)]


def test_holes_are_filled_from_the_end() -> None:
    scheduler = Scheduler(6)
    scheduler.submit([sequence(t, key=t) for t in range(6)])
    scheduler.admit()
    holes, movers = scheduler.release(np.array([0, 3, 5]))
    assert holes.tolist() == [0]
    assert movers.tolist() == [4]
    assert [s.ticket for s in scheduler.active] == [4, 1, 2]
    assert scheduler.rows.key[:3].tolist() == [4, 1, 2]


def test_an_ignored_end_does_not_end() -> None:
    scheduler = Scheduler(2)
    params = SamplingParams(max_tokens=5, ignore_eos=True)
    scheduler.submit([Sequence(0, 0, (3,), params, 0, 6), sequence(1)])
    scheduler.admit()
    assert scheduler.advance(np.array([1, 1]), STOPS).tolist() == [1]


def test_cancelling_forgets_what_waits_and_names_what_runs() -> None:
    scheduler = Scheduler(2)
    scheduler.submit([sequence(t) for t in (7, 8, 7, 9)])
    scheduler.admit()
    rows = scheduler.cancel(7)
    assert rows.tolist() == [0]
    scheduler.release(rows)
    assert [s.ticket for s in (*scheduler.active, *scheduler.waiting)] == [8, 9]
