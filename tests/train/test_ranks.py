"""Several processes train to the bits of one, and a process that differs, ends or hangs is named."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from little import documents, grpo_run, loud, packed, same, sft_run, tiny
from ranked import RUNS, in_ranks, make, train
from torch import Tensor

from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir
from rorqual.dist.ranks import RankError, current_ranks
from rorqual.engine import Completion, Request
from rorqual.engine.rollout_engine import InlineRolloutEngine
from rorqual.train.gradient import gradient, open_workers
from rorqual.train.objectives import MultiToken, NextToken
from rorqual.train.run import Run


@pytest.mark.parametrize("name", RUNS)
def test_three_processes_train_to_the_bits_of_one(name: str, base: Path, tmp_path: Path) -> None:
    """Five micro-batches: two, two and one, or none where a batch has fewer rows."""
    run = make(name, base, tmp_path, steps=3, parts=5)
    train(run, tmp_path / "one", threads=2)
    assert in_ranks(3, train, run, tmp_path / "three") == [None] * 3
    same(tmp_path / "one", tmp_path / "three")


# ---- sums


def terms() -> list[list[Tensor | None]]:
    """Seven lists of three tensors, of which one is missing everywhere and others here and there. Sums depend on the order."""
    generator = torch.Generator().manual_seed(5)
    shapes: list[tuple[int, ...]] = [(3, 5), (4,), (2,), ()]
    return [
        [
            None if i == 2 or (part + i) % 3 == 0 else torch.randn(shape, generator=generator) * 10.0**part
            for i, shape in enumerate(shapes)
        ]
        for part in range(7)
    ]


def add(count: int) -> list[Tensor | None]:
    parts, ranks = terms()[:count], current_ranks()
    present = [[one is not None for one in part] for part in parts]
    like = [torch.empty(shape) for shape in [(3, 5), (4,), (2,), ()]]
    return ranks.add_in_order(ranks.share(parts), present, like)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_sums_have_the_order_of_the_parts(count: int) -> None:
    slow: list[Tensor | None] = [None] * 4
    for part in terms()[:count]:
        for i, one in enumerate(part):
            if one is not None:
                before = slow[i]
                slow[i] = one if before is None else before + one
    backwards = sum((one for part in reversed(terms()) if (one := part[0]) is not None), torch.zeros(3, 5))
    for found in [add(count), *in_ranks(3, add, count)]:
        for mine, other in zip(slow, found, strict=True):
            assert (mine is None and other is None) or (
                mine is not None and other is not None and torch.equal(mine, other)
            )
    if count == 7:
        assert slow[0] is not None and not torch.equal(slow[0], backwards), "the order must matter"


def divided(total: int) -> tuple[list[int], list[str], list[int]]:
    ranks = current_ranks()
    mine = ranks.share(range(total))
    return (
        list(mine),
        ranks.gather([f"{ranks.rank}:{one}" for one in mine]),
        ranks.map(lambda some: [2 * x for x in some], range(total)),
    )


@pytest.mark.parametrize("total", [0, 2, 8])
def test_shares_are_gathered_in_order(total: int) -> None:
    found = in_ranks(3, divided, total)
    assert [one for mine, _, _ in found for one in mine] == list(range(total))
    assert max(len(mine) for mine, _, _ in found) - min(len(mine) for mine, _, _ in found) <= 1
    want = [f"{rank}:{one}" for rank, (mine, _, _) in enumerate(found) for one in mine]
    assert all(gathered == want and doubled == [2 * x for x in range(total)] for _, gathered, doubled in found)


# ---- processes that differ, end or hang


def train_apart(run_of: int, folder: Path) -> None:
    """Rank 1 differs as `run_of` says."""
    run, other = sft_run(2, micro_batches=2), current_ranks().rank == 1
    if run_of == 1 and other:
        run = run.model_copy(update={"seed": 1})
    if run_of == 2 and other:
        folder = folder / "of another machine"
    train(run, folder / "run")


@pytest.mark.parametrize(("how", "words"), [(1, r"in settings"), (2, r"in run folder"), (0, "")])
def test_processes_that_differ_are_refused(how: int, words: str, tmp_path: Path) -> None:
    found = in_ranks(2, train_apart, how, tmp_path)
    if not words:
        assert found == [None, None]
        return
    assert all(isinstance(error, ConfigError) for error in found)
    assert all(f"ranks: rank 1 differs from rank 0 {words}\n" in str(error) for error in found)
    assert not RunDir(tmp_path / "run").config_file.exists()


def other_batch(seed: int) -> float:
    rank = current_ranks().rank
    with open_workers(1) as pool:
        batch = packed(documents(seed * rank))
        return gradient(loud(tiny()), (NextToken(), MultiToken()), batch, parts=2, pool=pool).loss


def test_processes_with_other_batches_are_refused() -> None:
    one, two = in_ranks(2, other_batch, 0)
    assert one == two > 0
    for error in in_ranks(2, other_batch, 1):
        assert isinstance(error, ConfigError) and "rank 1 differs from rank 0 in the batch" in str(error)


def test_more_processes_than_micro_batches_are_refused(tmp_path: Path) -> None:
    for error in in_ranks(3, train, sft_run(2, micro_batches=2), tmp_path / "run"):
        assert isinstance(error, ConfigError) and "micro_batches: 3 processes share 2 micro-batches" in str(error)
    assert not (tmp_path / "run").exists()


def lost(rank: int, how: str) -> float:
    ranks = current_ranks()
    ranks.gather([0])
    began = time.monotonic()
    if ranks.rank == rank and how == "hangs":
        time.sleep(4)
        return 0.0
    if ranks.rank == rank:
        raise ZeroDivisionError
    try:
        ranks.gather([0])
    except RankError as error:
        told = ranks.rank == 0 or rank == 0  # rank 0 notices, and the others notice that rank 0 is gone
        assert not told or f"rank {ranks.rank}: rank {rank} ended, or did not answer in time" in str(error), error
        return time.monotonic() - began
    return -1.0


@pytest.mark.parametrize(("rank", "how"), [(2, "hangs"), (1, "ends"), (0, "hangs")])
def test_a_process_that_hangs_or_ends_is_named_in_time(rank: int, how: str) -> None:
    found = in_ranks(3, lost, rank, how, seconds=1.0)
    for other, waited in enumerate(found):
        if other != rank:
            assert isinstance(waited, float) and 0 < waited < 3.5, found


# ---- what is shared


def missing_then(value: float) -> list[Tensor | None]:
    ranks = current_ranks()
    parts: list[list[Tensor | None]] = [[None], [torch.tensor([value, 1.0])]]
    return ranks.add_in_order(ranks.share(parts), [[False], [True]], [torch.empty(2)])


def test_a_missing_tensor_changes_no_bit() -> None:
    for (found,) in in_ranks(2, missing_then, -0.0):
        assert found is not None and math.copysign(1, float(found[0])) == -1


def sampled_here(run: Run, out: Path) -> list[int]:
    """How many requests this process's engine was asked in each step."""
    asked, generate = list[int](), InlineRolloutEngine.generate

    def counted(self: InlineRolloutEngine, requests: Sequence[Request]) -> Iterator[Completion]:
        asked.append(len(requests))
        return generate(self, requests)

    InlineRolloutEngine.generate = counted  # type: ignore[method-assign]
    train(run, out)
    return asked


def test_each_process_samples_its_share(base: Path, tmp_path: Path) -> None:
    """Four prompts a step and three processes."""
    assert in_ranks(3, sampled_here, grpo_run(base, 2, micro_batches=3), tmp_path / "run") == [[2, 2], [1, 1], [1, 1]]


def test_bfloat16_has_the_same_bits_with_two_threads(base: Path, tmp_path: Path) -> None:
    """The output head is used twice, for the next token and by the prediction module."""
    run = make("sft bf16", base, tmp_path, steps=3, parts=5)
    train(run, tmp_path / "one", threads=1)
    for number in range(4):  # the timing of the threads differs
        train(run, tmp_path / f"two {number}", threads=2)
        same(tmp_path / "one", tmp_path / f"two {number}")
