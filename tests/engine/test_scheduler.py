"""What runs when: nobody is lost, no block is another's, long prompts delay nobody, and each answer is the one computed alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tape import Job, Tape, answer, drive, sequence, some_ids

from rorqual.engine.prompt_scores import PromptScores
from rorqual.engine.scheduler import PREFILL_BESIDE_OTHERS, SCORED_TOKEN_COST
from rorqual.ops.paged import BLOCK, QUERIES


def some_jobs(rng: random.Random, count: int, room: int) -> list[Job]:
    """Sequences of up to `room` ids of which many begin alike, at random times, some of which leave."""
    stems = [tuple(rng.randrange(2, 40) for _ in range(3 * BLOCK)) for _ in range(2)]
    jobs = []
    for request_id in range(count):
        stem = rng.choice(stems)[: rng.choice((0, 10, BLOCK, BLOCK + 1, 2 * BLOCK, rng.randrange(3 * BLOCK)))]
        prompt = (*stem, *(rng.randrange(2, 40) for _ in range(rng.choice((1, 5, rng.randrange(1, 70))))))
        new = rng.choice((1, 3, rng.randrange(1, 90), rng.randrange(70, 150)))
        prompt = prompt[: max(1, room - new)]
        one = sequence(
            request_id,
            prompt,
            new=min(new, room - 1),
            tenant=rng.choice("ab"),
            priority=rng.choice((0, 0, 0, 1, -1)),
            reuse=rng.random() < 0.9,
            endless=rng.random() < 0.6,
        )
        if jobs and rng.random() < 0.3:  # the same prompt again, as samples of one request have
            twin = rng.choice(jobs).sequence
            one = replace(one, prompt=twin.prompt, tenant=twin.tenant, limit=twin.limit, params=twin.params)
        at = rng.randrange(20)
        jobs.append(Job(one, at, at + rng.randrange(1, 40) if rng.random() < 0.2 else None))
    return jobs


def random_drive(seed: int) -> tuple[Tape, int, int]:
    rng = random.Random(seed)
    blocks = rng.randrange(4, 12)
    tape = Tape(rng.randrange(1, 7), blocks + 1, step_tokens=rng.choice((1, 40, 100, 2048)))
    jobs = some_jobs(rng, rng.randrange(1, 14), min(blocks * BLOCK, 300))
    seen = drive(tape, jobs)
    for job in jobs:
        ids = seen.ended.get(job.sequence.request_id)
        assert ids is not None or job.leaves is not None, "lost"
        assert ids is None or ids == answer(job.sequence)
    assert tape.scheduler.idle and tape.kv_cache.pool.n_used_blocks == 1  # nobody's block
    assert len(tape.scheduler._free) == tape.scheduler.slots
    return tape, seen.stepped_back, seen.cancelled_while_running


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**9))
def test_every_sequence_ends_with_the_answer_it_has_alone(seed: int) -> None:
    random_drive(seed)


def test_what_the_random_drives_are_for_does_occur() -> None:
    back = left = hit = 0
    for seed in range(20):
        tape, stepped_back, cancelled = random_drive(seed)
        assert tape.scheduler.preemptions >= tape.preempted
        back, left, hit = back + stepped_back, left + cancelled, hit + tape.kv_cache.hit_tokens
    assert back >= 8 and left >= 4 and hit >= 500


# ---- ends


# ---- prompts


@pytest.mark.parametrize("step_tokens", [1, 40, 64, 100])
def test_a_long_prompt_delays_no_row_by_more_than_a_step(step_tokens: int) -> None:
    """While it is fed, those that decode get a token in every step, and a step feeds no more than it may."""
    tape = Tape(4, 40, step_tokens=step_tokens)
    talkers = [Job(sequence(t, (5, t), new=80)) for t in (2, 3)]
    long = Job(sequence(9, some_ids(0, 1500), new=2), at=3)
    seen = drive(tape, [*talkers, long])
    busy = [(decode, fed) for decode, fed in tape.fed_in_a_step if fed > 2]
    assert len(busy) >= 1500 // max(step_tokens, QUERIES)
    assert all(fed <= max(step_tokens - decode, QUERIES) for decode, fed in busy)
    assert all(decode >= 1 for decode, _ in tape.fed_in_a_step[2:40])
    assert {t: len(ids) for t, ids in seen.ended.items()} == {
        job.sequence.request_id: len(answer(job.sequence)) for job in (*talkers, long)
    }


def test_a_prompt_beside_another_tenant_is_fed_in_small_parts() -> None:
    for tenant, step_tokens, most in (("a", 400, 399), ("b", 400, PREFILL_BESIDE_OTHERS), ("b", 1000, 125)):
        tape = Tape(4, 40, step_tokens=step_tokens)
        talker, long = sequence(2, (5, 2), new=80, tenant="a"), sequence(9, some_ids(0, 1500), new=2, tenant=tenant)
        drive(tape, [Job(talker), Job(long, at=3)])
        assert max(fed for decode, fed in tape.fed_in_a_step if decode) == most
    tape = Tape(4, 40, step_tokens=1000)
    drive(tape, [Job(sequence(9, some_ids(0, 1500), new=2))])
    assert tape.fed_in_a_step[0] == (0, 1000), "alone, a prompt has the whole step"


def test_a_scored_prompt_leaves_a_part_of_the_step_to_other_tenants() -> None:
    tape = Tape(4, 40, step_tokens=100)
    tape.scheduler.submit([sequence(2, (5, 2), new=80, tenant="a")])
    tape.step()
    scored, plain = (sequence(n, some_ids(n, 700), new=1, tenant=name) for n, name in ((3, "h"), (4, "c")))
    scored.scores = PromptScores(700, 20)
    tape.scheduler.submit([scored, plain])
    tape.step()
    assert (scored.num_computed_tokens, plain.num_computed_tokens) == (QUERIES, QUERIES)


def test_a_token_with_a_log_probability_counts_as_several() -> None:
    scored, plain = (sequence(number, some_ids(number, 700), new=1) for number in (3, 4))
    scored.scores = PromptScores(700, 20)
    tape = Tape(4, 40, step_tokens=1600)
    tape.scheduler.submit([scored])
    tape.step()
    assert tape.fed_in_a_step == [(0, 1600 // SCORED_TOKEN_COST)]
    tape.scheduler.submit([plain])
    tape.step()
    assert scored.num_computed_tokens == 200 + 100 and plain.num_computed_tokens == 700, "half of the step each"


def test_equal_prompts_are_fed_once_and_only_within_a_tenant() -> None:
    prompt = some_ids(1, 100)
    for tenants, fed in ((("a", "a", "a"), 100), (("a", "b", "a"), 200)):
        tape = Tape(4, 20, step_tokens=1000)
        tape.scheduler.submit([sequence(t, prompt, tenant=name) for t, name in enumerate(tenants)])
        tape.step()
        assert tape.fed_in_a_step == [(0, fed)]


# ---- stepping back


def test_a_higher_priority_takes_a_slot_at_once_and_a_lower_one_waits() -> None:
    tape = Tape(2, 20, step_tokens=1000)
    low = [Job(sequence(t, (3, t), new=60, endless=True)) for t in (2, 3)]
    high = Job(sequence(8, (3, 8), new=1, priority=5), at=2)
    lower = Job(sequence(9, (3, 9), new=1, priority=-1), at=2)
    seen = drive(tape, [*low, high, lower])
    assert seen.order[0] == 8 and seen.order[-1] == 9 and tape.scheduler.preemptions == 1
    assert seen.ended == {job.sequence.request_id: answer(job.sequence) for job in (*low, high, lower)}


def test_one_of_high_priority_behind_one_of_low_that_steps_back_goes_first() -> None:
    """They have one prompt; what takes the slot of the first must not be taken for who now waits at its side."""
    prompt = tuple(range(2, 40)) * 4
    tape = Tape(2, 20, step_tokens=32)
    behind = [sequence(0, prompt, priority=0), sequence(1, prompt, priority=3)]
    third = sequence(2, (4, 5), priority=1)
    tape.scheduler.submit(behind[:1])
    tape.step()
    tape.scheduler.submit(behind[1:])
    tape.step()
    assert tape.scheduler.prefilling[0].followers == behind[1:]
    try:
        seen = drive(tape, [Job(third)])
    except RuntimeError as broken:
        raise AssertionError(str(broken)) from broken
    assert seen.ended == {s.request_id: answer(s) for s in (*behind, third)}


# ---- leaving
