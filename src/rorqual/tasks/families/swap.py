"""Swap pairs of letters in a string."""

from __future__ import annotations

import random
from itertools import combinations
from typing import ClassVar

from rorqual.tasks.families.family import Family
from rorqual.tasks.task import Problem

LETTERS = "abcde"
PAIRS = tuple("".join(pair) for pair in combinations(LETTERS, 2))


class LetterSwap(Family):
    """Letter swaps: `swap cabed ab de` swaps a with b, then d with e. The steps are `ab=cbaed de=cbade`. `difficulty` is the number of pairs.

    Each step swaps the two letters of a pair, and `ab` and `ba` are the same pair.
    Adjacent pairs without a common letter commute, so problems that differ only in the order of such pairs share one key.
    Plain problems have one pair, and two to five letters.
    """

    name: ClassVar[str] = "swap"
    easy: ClassVar[range] = range(1, 4)
    hard: ClassVar[range] = range(4, 7)
    numeric: ClassVar[bool] = False

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        start = "".join(rng.sample(LETTERS, len(LETTERS) if difficulty else rng.randint(2, len(LETTERS))))
        pairs = [rng.choice(PAIRS) for _ in range(difficulty)] or ["".join(sorted(rng.sample(start, 2)))]
        shown = [pair if rng.random() < 0.5 else pair[::-1] for pair in pairs]
        state, words = start, []
        for pair in shown:
            state = state.translate(str.maketrans(pair, pair[::-1]))
            words.append(f"{pair}={state}")
        return self.problem(
            difficulty,
            key=" ".join([start, *_canonical_pair_order(pairs)]),
            prompt=" ".join([start, *shown]),
            steps=" ".join(words),
            answer=state,
        )

    def count_keys(self, difficulty: int) -> int:
        """Return the number of start strings times the number of pair sequences. Sequences that differ only in the order of
        adjacent disjoint pairs count as one.

        The generating function of the number of pair sequences is 1 / (1 - 10 t + 15 t^2) (Cartier and Foata, 1969).
        The ten letter pairs are the edges of the complete graph K5, which has 15 pairs of disjoint edges.
        """
        before, words = 0, 1
        for _ in range(difficulty):
            before, words = words, 10 * words - 15 * before
        return 120 * words


def _canonical_pair_order(pairs: list[str]) -> list[str]:
    """Return the lexicographically smallest order of `pairs` that can be reached by exchanging adjacent pairs without a common
    letter. The algorithm repeatedly takes the smallest pair that such exchanges can move to the front.
    """
    remaining, ordered = list(pairs), []
    while remaining:
        free = [i for i, pair in enumerate(remaining) if all(not set(pair) & set(earlier) for earlier in remaining[:i])]
        ordered.append(remaining.pop(min(free, key=remaining.__getitem__)))
    return ordered
