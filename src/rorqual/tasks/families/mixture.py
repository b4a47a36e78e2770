"""The problem families as one task with equal shares, split by a hash of each problem's key."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

from rorqual.core.errors import ConfigError, TaskError, suggest_name
from rorqual.tasks.families.add import Add
from rorqual.tasks.families.chain import OperationChain
from rorqual.tasks.families.count import LetterCount
from rorqual.tasks.families.family import Family
from rorqual.tasks.families.gcd import Gcd
from rorqual.tasks.families.knights_knaves import KnightsKnaves
from rorqual.tasks.families.mod import Mod
from rorqual.tasks.families.outside import Outside
from rorqual.tasks.families.sub import Sub
from rorqual.tasks.families.swap import LetterSwap
from rorqual.tasks.names import check_names
from rorqual.tasks.task import Problem, Split, Task, Verdict, split_of

FAMILIES: tuple[Family, ...] = (
    Add(),
    Sub(),
    OperationChain(),
    Gcd(),
    Mod(),
    LetterSwap(),
    LetterCount(),
    KnightsKnaves(),
)
OUTSIDE = Outside()
NAMES = tuple(family.name for family in FAMILIES)
ENOUGH = 30_000
"""Maximum number of problems that count toward the share of a difficulty.

Within a level, the share of a difficulty is proportional to min(number of its problems, `ENOUGH`). A difficulty with few
problems therefore does not run out of new problems first.
"""
REPEAT_TRIES = 200
"""After `REPEAT_TRIES` consecutive draws without a new problem, a difficulty of a held-out split counts as exhausted, and the
problems of this difficulty may repeat."""


class Families(Task):
    """An endless mixture of the families in `names`, with equal shares. `hard` is the fraction of hard problems.

    `plain` is the fraction of plain problems in each family. The mixture then also contains prompts that a model must decline
    (`Outside`), as many as the plain problems of one family.

    In a held-out split, problems of a difficulty repeat only after this difficulty has no new problems left. The shares
    of difficulties stay constant as more problems are drawn. A difficulty with few problems gets a smaller share. For
    example, only 4,095 two-digit sums exist, and 4 % of them are in the test split.

    Raises ConfigError for an unknown or repeated name, or if `hard` or `plain` is outside 0 to 1.
    """

    name = "families"

    def __init__(self, names: Sequence[str] = NAMES, hard: float = 0.3, plain: float = 0.0) -> None:
        names = check_names(names, NAMES, "families.names")
        for name, share in (("hard", hard), ("plain", plain)):
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                raise ConfigError(
                    f"not a share from 0 to 1: {share!r}",
                    where=f"families.{name}",
                    remedy=f"Give a number from 0 (no {name} problems) to 1 (only {name} problems).",
                )
        self.families = {family.name: family for family in FAMILIES if family.name in names}
        self.families |= {OUTSIDE.name: OUTSIDE} if plain else {}
        self.hard, self.plain = float(hard), float(plain)

    @property
    def versions(self) -> dict[str, int]:
        return {family.name: family.version for family in self.families.values()}

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        rng = random.Random(
            f"{seed} {split}"
        )  # `Random` hashes a string with SHA-512, so each process gets the same order
        seen: set[str] = set()
        repeats: Counter[tuple[str, int]] = Counter()
        order = list(self.families.values())
        while True:
            rng.shuffle(order)
            for family in order:
                plain = self.plain > 0 and rng.random() < self.plain
                if family is OUTSIDE and not plain:
                    continue
                cell = family.name, family.plain if plain else _random_difficulty(family, self.hard, rng)
                for problem in _problems_of_split(family, cell[1], split, rng):
                    fresh = problem.key not in seen
                    repeats[cell] = 0 if fresh else repeats[cell] + 1
                    if fresh or split == "train" or repeats[cell] > REPEAT_TRIES:
                        seen.add(problem.key)
                        yield problem
                        break

    def grade(self, problem: Problem, reply: str) -> Verdict:
        return _family(problem).grade(problem, reply)

    def canonical_answer(self, problem: Problem, reply: str) -> str | None:
        return _family(problem).canonical_answer(problem, reply)

    def is_marked(self, problem: Problem, reply: str) -> bool:
        return self.canonical_answer(problem, reply) is not None


def _random_difficulty(family: Family, hard: float, rng: random.Random) -> int:
    level = family.hard if rng.random() < hard else family.easy
    return rng.choices(level, _difficulty_weights(family, level))[0]


def _problems_of_split(family: Family, difficulty: int, split: Split, rng: random.Random) -> Iterator[Problem]:
    while True:
        problem = family.sample(rng, difficulty)
        if split_of(problem.key) == split:
            yield problem


@cache
def _difficulty_weights(family: Family, level: range) -> tuple[int, ...]:
    return tuple(min(family.count_keys(difficulty), ENOUGH) for difficulty in level)


def _family(problem: Problem) -> Family:
    """Return the family of `problem`. The family may be absent from the mixture, because any mixture may grade stored
    problems."""
    for family in (*FAMILIES, OUTSIDE):
        if family.name == problem.family:
            return family
    raise TaskError(f"no family '{problem.family}'", where="task families", remedy=suggest_name(problem.family, NAMES))
