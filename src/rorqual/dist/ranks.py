"""The processes that train together: shares of work, and sums in a fixed order.

Each process (rank) computes its share of an update's micro-batches. The gradients are added in the order of the micro-batches,
whichever rank computed them, so any number of ranks gives the bits of one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rorqual.core.errors import ConfigError, RorqualError

T = TypeVar("T")
S = TypeVar("S")


class RankError(RorqualError):
    """A rank ended or did not answer. Repeating the command may help, so the exit status is EX_TEMPFAIL of sysexits.h."""

    exit_status = 75


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `count` processes. Every rank must call the same methods in the same order.

    If a rank ends, or does not call a method within the time limit of `joined`, the methods raise RankError in the others.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone writes files and shows progress."""
        return self.rank == 0

    def sizes(self, total: int) -> list[int]:
        """Return how many of `total` items each rank has: equally many, or one more for the first ranks."""
        each, more = divmod(total, self.count)
        return [each + (rank < more) for rank in range(self.count)]

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return the consecutive items that belong to this rank."""
        ends = [0, *accumulate(self.sizes(len(items)))]
        return items[ends[self.rank] : ends[self.rank + 1]]

    def gather(self, items: Sequence[T]) -> list[T]:
        """Return the items of all ranks, in the order of the ranks, as soon as all ranks have called `gather`."""
        if self.count == 1:
            return list(items)
        found: list[Sequence[T]] = [()] * self.count
        with self._named_errors():
            group = dist.distributed_c10d._get_default_group()
            limit = group._get_backend(torch.device("cpu")).options._timeout  # monitored_barrier would wait 30 minutes
            dist.monitored_barrier(timeout=limit, wait_all_ranks=True)
            dist.all_gather_object(found, items)
        return [item for part in found for item in part]

    def map(self, work: Callable[[Sequence[S]], Sequence[T]], items: Sequence[S]) -> list[T]:
        """Return `work(items)`, computed by all ranks together: each applies `work` to its share."""
        return self.gather(work(self.share(items)))

    def agree(self, facts: Mapping[str, str]) -> None:
        """Raise ConfigError, in every rank, if `facts` differ between the ranks."""
        found = self.gather([dict(facts)])
        for name in facts:
            self.check_same(name, [one[name] for one in found])

    def check_same(self, name: str, values: Sequence[str]) -> None:
        """Raise ConfigError if the ranks have different `values` of what is called `name`."""
        if other := [rank for rank, value in enumerate(values) if value != values[0]]:
            raise ConfigError(
                f"rank {other[0]} differs from rank 0 in {name}",
                where="ranks",
                remedy="Give every rank the same code, files, settings and run folder, and processors of one kind.",
            )

    def add_in_order(
        self, parts: Sequence[Sequence[Tensor | None]], present: Sequence[Sequence[bool]], like: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Add lists of tensors, such as the gradients of micro-batches, in order: ((part 0 + part 1) + part 2) + ...

        `parts` are this rank's share of the lists. `present` tells of every list which of its tensors are not None, and `like` has
        the shapes, all of one dtype. A sum is None if all of its tensors are None.

        All ranks must have called `gather` just before. Each rank adds one slice of all tensors: an all-to-all of the slices and an all-gather of the sums. If each rank has one
        list, these are the bytes of a ring all-reduce.
        """
        if self.count == 1:
            sums: list[Tensor | None] = [None] * len(like)
            for part in parts:
                sums = [b if a is None else a if b is None else a.add_(b) for a, b in zip(sums, part, strict=True)]
            return sums
        width = -(-sum(one.numel() for one in like) // self.count)
        # x + -0.0 is x for every x, so -0.0 stands for a missing tensor.
        mine = torch.full((self.count * width, len(parts)), -0.0, dtype=like[0].dtype)
        for column, part in enumerate(parts):
            start = 0
            for one, shape in zip(part, like, strict=True):
                if one is not None:
                    mine[start : start + one.numel(), column] = one.flatten()
                start += shape.numel()
        sizes = self.sizes(len(present))
        received, whole = mine.new_empty(width * len(present)), mine.new_empty(self.count * width)
        with self._named_errors():
            sent = mine.view(self.count, width, len(parts)).transpose(1, 2).contiguous()
            dist.all_to_all_single(
                received, sent.flatten(), [width * size for size in sizes], [width * len(parts)] * self.count
            )
            slices = received.view(len(present), width)
            total = slices[0].clone()
            for other in slices[1:]:
                total += other
            dist.all_gather(list(whole.split(width)), total)
        pieces = whole[: sum(one.numel() for one in like)].split([one.numel() for one in like])
        some = [any(flags) for flags in zip(*present, strict=True)]
        return [piece.view_as(one) if found else None for piece, one, found in zip(pieces, like, some, strict=True)]

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Raise RankError for a rank that ended or does not answer."""
        try:
            yield
        except RuntimeError as error:
            raise RankError(
                f"{_name_ranks(str(error))} ended, or did not answer in time",
                where=f"rank {self.rank}",
                remedy="See the log of that rank, or raise rank_timeout=. The same command resumes from the newest checkpoint.",
            ) from error


def current_ranks() -> Ranks:
    """Return the ranks of torch's process group, or a single rank if the process has no group."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


@contextmanager
def joined(seconds: float = 600.0) -> Iterator[None]:
    """Inside the `with` block, belong to the process group that torchrun or the user names in the environment variables RANK,
    WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Without RANK, the process has no group. The ranks wait at most `seconds` for each other."""
    if "RANK" not in os.environ:
        yield
        return
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    except (RuntimeError, ValueError) as error:
        raise RankError(
            f"cannot join the other processes: {str(error).splitlines()[0]}",
            where=f"rank {os.environ['RANK']}",
            remedy="Check MASTER_ADDR, MASTER_PORT and that every process has started.",
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def _name_ranks(error: str) -> str:
    """Return the ranks that torch's error of a barrier names."""
    found = re.search(r"Ranks ([\d, ]+) failed to pass|send/recv from (rank \d+)", error)
    return "another rank" if found is None else found[2] or f"rank {found[1].strip()}"
