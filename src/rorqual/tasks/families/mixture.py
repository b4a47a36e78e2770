"""The families as one task: evenly mixed, split by hash of the canonical form."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from rorqual.core.errors import ConfigError, TaskError, nearest
from rorqual.tasks.base import Problem, Split, Task, Verdict, split_of
from rorqual.tasks.families.add import Add
from rorqual.tasks.families.base import Family
from rorqual.tasks.families.chain import Chain
from rorqual.tasks.families.count import Count
from rorqual.tasks.families.gcd import Gcd
from rorqual.tasks.families.kk import KnightsKnaves
from rorqual.tasks.families.mod import Mod
from rorqual.tasks.families.sub import Sub
from rorqual.tasks.families.swap import Swap

FAMILIES: tuple[Family, ...] = (Add(), Sub(), Chain(), Gcd(), Mod(), Swap(), Count(), KnightsKnaves())
NAMES = tuple(family.name for family in FAMILIES)
FRESH_TRIES = 400
"""Draws after which another difficulty of the level is tried: a small cell, such as two-digit sums, runs out of fresh ones."""
REPEAT_TRIES = 20 * FRESH_TRIES
"""Draws after which a held-out problem may repeat."""


class Families(Task):
    """`names` evenly mixed; a share `hard` of the problems is hard. Endless in each split.

    Held-out splits do not repeat a problem while fresh ones are to be had. Errors: `ConfigError` for an unknown or repeated
    name and for a share outside 0 to 1.
    """

    name = "families"

    def __init__(self, names: Sequence[str] = NAMES, hard: float = 0.3) -> None:
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            if name not in NAMES:
                raise ConfigError(f"unknown family '{name}'", where="families.names", remedy=nearest(name, NAMES))
        if not names or len(set(names)) != len(names):
            raise ConfigError("no family is named, or one twice", where="families.names", remedy="Name each once.")
        if isinstance(hard, bool) or not isinstance(hard, int | float) or not 0 <= hard <= 1:
            raise ConfigError(
                f"not a share: {hard!r}",
                where="families.hard",
                remedy="Give a number from 0 (all easy) to 1 (all hard).",
            )
        self.families = {family.name: family for family in FAMILIES if family.name in names}
        self.hard = float(hard)

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        rng = random.Random(f"{seed} {split}")  # a text seeds by SHA-512: the same in each process
        seen: set[str] = set()
        order = list(self.families.values())
        while True:
            rng.shuffle(order)
            for family in order:
                yield self._fresh(family, split, rng, seen)

    def _fresh(self, family: Family, split: Split, rng: random.Random, seen: set[str]) -> Problem:
        level = family.hard if rng.random() < self.hard else family.easy
        difficulty, tries = rng.choice(level), 0
        while True:
            problem = family.sample(rng, difficulty)
            tries += 1
            if split_of(problem.key) == split:
                if split == "train":
                    return problem
                if problem.key not in seen or tries > REPEAT_TRIES:
                    seen.add(problem.key)
                    return problem
            if tries % FRESH_TRIES == 0:
                difficulty = rng.choice(level)

    def grade(self, problem: Problem, reply: str) -> Verdict:
        return _family(problem).grade(problem, reply)

    def chance(self, problem: Problem) -> float:
        return _family(problem).chance(problem)


def _family(problem: Problem) -> Family:
    """Also one that this mixture does not draw from: kept problems may be judged by any."""
    for family in FAMILIES:
        if family.name == problem.family:
            return family
    raise TaskError(f"no family '{problem.family}'", where="task families", remedy=nearest(problem.family, NAMES))
