"""Letters that change places."""

from __future__ import annotations

import random
from itertools import combinations
from typing import ClassVar

from rorqual.tasks.base import Problem
from rorqual.tasks.families.base import Family, FamilyKind

LETTERS = "abcde"
PAIRS = tuple("".join(pair) for pair in combinations(LETTERS, 2))


class Swap(Family):
    """`swap cabed ab de`: `ab=cbaed de=cbade`: the two letters of each pair change places. `difficulty` counts pairs.

    `ab` is `ba`, and neighbouring pairs without a common letter may be made in either order: one problem.
    """

    name: ClassVar[str] = "swap"
    kind: ClassVar[FamilyKind] = "text"
    easy: ClassVar[range] = range(1, 4)
    hard: ClassVar[range] = range(4, 7)
    version: ClassVar[int] = 2
    numeric: ClassVar[bool] = False

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        start = "".join(rng.sample(LETTERS, len(LETTERS)))
        pairs = [rng.choice(PAIRS) for _ in range(difficulty)]
        shown = [pair if rng.random() < 0.5 else pair[::-1] for pair in pairs]
        state, words = start, []
        for pair in shown:
            state = state.translate(str.maketrans(pair, pair[::-1]))
            words.append(f"{pair}={state}")
        return self.problem(
            difficulty,
            key=" ".join([start, *_canonical(pairs)]),
            prompt=" ".join([start, *shown]),
            steps=" ".join(words),
            answer=state,
        )

    def size(self, difficulty: int) -> int:
        """Starts times words of pairs up to exchange of disjoint neighbours.

        Their generating function is 1 / (1 - 10 t + 15 t^2) (Cartier and Foata, 1969): K5 has 10 edges and 15 pairs of
        disjoint edges.
        """
        before, words = 0, 1
        for _ in range(difficulty):
            before, words = words, 10 * words - 15 * before
        return 120 * words


def _canonical(pairs: list[str]) -> list[str]:
    """The least order that exchanges of disjoint neighbours reach: again and again the least pair that can come first."""
    left, out = list(pairs), []
    while left:
        free = [i for i, pair in enumerate(left) if all(not set(pair) & set(earlier) for earlier in left[:i])]
        out.append(left.pop(min(free, key=left.__getitem__)))
    return out
