"""Divide examples into folds and splits: each label has its share in every fold, and near-duplicates stay together."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rorqual.tasks.examples import AnswerKind
from rorqual.tasks.task import Split
from rorqual.teach.examples import Example, answer_kind, canonical_answer, parse_json
from rorqual.teach.near_duplicates import find_near_duplicates

FOLDS = 5
"""Number of folds. The test split is one fold of the file, and the dev split is fold `DEV` of the other examples."""
DEV, TEST = 0, -1


def folds(examples: Sequence[Example], kind: AnswerKind, groups: Sequence[str]) -> NDArray[np.int64]:
    """Return the fold of each example [examples], from 0 to `FOLDS` - 1. Examples of one group are in one fold.

    The examples of each stratum are spread evenly over the folds. A stratum has the examples with the same label; for JSON
    answers, with the same value of the leading field. Numbers and free texts are one stratum. The folds depend on the
    contents of the examples, and not on their order.
    """
    strata, hashes = _strata(examples, kind), [content_hash(one) for one in examples]
    members: dict[str, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        members[group].append(place)
    groups_of: dict[str, list[list[int]]] = defaultdict(list)
    for places in members.values():
        counts = Counter(strata[place] for place in places)
        groups_of[max(sorted(counts), key=counts.__getitem__)].append(places)
    fold = np.zeros(len(examples), np.int64)
    total = [0] * FOLDS
    for stratum in sorted(groups_of, key=lambda name: (-sum(map(len, groups_of[name])), name)):
        largest_first = sorted(groups_of[stratum], key=lambda some: (-len(some), min(hashes[place] for place in some)))
        # Each label that is frequent enough is in fold 0, with its smallest group. Other ties go to the last fold.
        first = [largest_first.pop()] if len(largest_first) >= FOLDS - 1 else []
        own = [0] * FOLDS
        for places in [*first, *largest_first]:
            number = 0 if places in first else min(range(FOLDS), key=lambda one: (own[one], total[one], -one))
            fold[places] = number
            own[number] += len(places)
            total[number] += len(places)
    return fold


def divide(
    examples: Sequence[Example], kind: AnswerKind, groups: Sequence[str], *, has_test_file: bool = False
) -> NDArray[np.int64]:
    """Return the fold of each example [examples] among the examples for training and dev, or `TEST` for an example of the test
    split. With a test file, no example is in the test split."""
    if has_test_file:
        return folds(examples, kind, groups)
    fold = np.full(len(examples), TEST)
    pool = np.flatnonzero(folds(examples, kind, groups)).tolist()
    fold[pool] = folds([examples[place] for place in pool], kind, [groups[place] for place in pool])
    return fold


def split_of_fold(fold: int) -> Split:
    """Return the split of an example by its number from `divide`."""
    return "test" if fold == TEST else "dev" if fold == DEV else "train"


def content_hash(example: Example) -> bytes:
    """Return a hash of the prompt, which fixes the example's place in an order that does not depend on the file."""
    return hashlib.sha256(example.key.encode()).digest()


def near_duplicate_groups(examples: Sequence[Example]) -> list[str]:
    """Return the group of each example, named by the key of the group's first example. Examples that a chain of near-duplicates connects form
    one group, and stay in one split."""
    return [examples[first].key for first in find_near_duplicates([one.prompt for one in examples]).groups]


def _strata(examples: Sequence[Example], kind: AnswerKind) -> list[str]:
    if kind == "label":
        return [canonical_answer(one, kind) for one in examples]
    if kind == "JSON" and examples:
        parsed = [parse_json(one.answer) for one in examples]
        fields = [value if isinstance(value, dict) else {} for value in parsed]
        first = min(range(len(examples)), key=lambda place: content_hash(examples[place]))
        for name in fields[first]:
            values = [str(one.get(name, "")) for one in fields]
            few = (
                answer_kind([replace(one, answer=text) for one, text in zip(examples, values, strict=True)]) == "label"
            )
            if few and len({*values}) > 1:
                return values
    return [""] * len(examples)
