"""The same request gives the same bits: ids, log-probabilities, experts and kept sets, whatever runs beside it and wherever its cache came
from. Trained models, both kinds of attention, fp32 and bf16; every comparison is for equality. 2,000 schedules: scripts/same_bits.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from schedules import FORCED, Pool, Wrong, differences, make_pool, run_schedule
from trained import KINDS, TYPES, in_type

from rorqual.engine import Completion
from rorqual.model import Decoder


@pytest.fixture(scope="module", params=[(kind, dtype) for kind in KINDS for dtype in TYPES], ids="-".join)
def model(request: pytest.FixtureRequest, models: dict[str, Decoder]) -> Decoder:
    kind, dtype = request.param
    return in_type(models[kind], dtype)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run_all(pool: Pool, seeds: range, folder: Path) -> None:
    total: Counter[str] = Counter()
    answers = 0
    for seed in seeds:
        counts, checked = run_schedule(pool, seed, folder / str(seed))
        assert all(counts[name] for name in FORCED)
        total, answers = total + counts, answers + checked
    assert answers >= 8 * len(seeds) and total["hit"] and total["missed"]


@pytest.mark.usefixtures("one_thread")
def test_random_schedules_change_no_bit(model: Decoder, tmp_path: Path) -> None:
    """Each forces a preemption, a hit in part, a cancellation and a restore from disk, and counts them from outside."""
    run_all(make_pool(model, seed=1), range(3), tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("pack", [False, True], ids=["plain", "packed"])
def test_more_random_schedules_change_no_bit(model: Decoder, pack: bool, tmp_path: Path) -> None:
    """The same with weights laid out anew, which round in another way, and in one way."""
    run_all(make_pool(model, seed=4, pack=pack), range(3, 7), tmp_path)


@pytest.mark.usefixtures("one_thread")
def test_the_comparison_sees_one_bit(model: Decoder, tmp_path: Path) -> None:
    pool = make_pool(model, seed=2)
    (expected,) = pool.alone(pool.families[0][2])
    other = Completion(**vars(expected))
    assert differences(other, expected) == []
    last = torch.tensor(expected.logprobs[-1])
    other.logprobs = [*expected.logprobs[:-1], float(torch.nextafter(last, torch.tensor(-torch.inf)))]
    assert differences(other, expected) == ["log-probabilities"]
    pool.answers = {number: [other] * 3 for number in range(len(pool.requests))}
    with pytest.raises(Wrong, match=r"log-probabilities|token ids"):
        run_schedule(pool, 0, tmp_path)


def stepped(pool: Pool, number: int) -> list[Completion]:
    """The answers of one request from `step`, which runs in the calling thread, with its torch threads."""
    engine = pool.engine(slots=4)
    engine.submit(pool.requests[number])
    found: dict[int, Completion] = {}
    while engine.stats()["running"] + engine.stats()["waiting"]:
        found |= {delta.sample: delta.completion for delta in engine.step() if delta.completion is not None}
    return [found[sample] for sample in sorted(found)]


@pytest.mark.usefixtures("one_thread")
def test_one_thread_or_two_change_no_bit(model: Decoder) -> None:
    pool = make_pool(model, seed=3, stems=1)
    for number in (1, 2):
        torch.set_num_threads(2)
        two = stepped(pool, number)
        torch.set_num_threads(1)
        assert [differences(a, b) for a, b in zip(two, pool.alone(number), strict=True)] == [[]] * len(two)
