"""A small decision tree on surface features of a prompt. Surface features can be computed without solving the problem."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DEPTH, LEAF, CUTS, LABELS = 4, 20, 31, 32
"""Depth of the tree, minimum number of problems per leaf, number of cuts per feature, and maximum number of labels that the
tree can guess."""
NUMBER = re.compile(r"[0-9]+")
NUMBER_DIGITS = 15

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]


def surface_features(prompt: str) -> dict[str, float]:
    """Return the features of a prompt: lengths, character counts, and features of two words and of two numbers.

    The two words are the second and the last word of the prompt. The two numbers are the first and the last number of the
    prompt. The features of a word are its length and the code points of its first and last character. A number feature is -1 if
    the prompt has no number. A prompt of a built-in family starts with the family's name, so the second word is the first word
    of the problem.
    """
    words, numbers, counts = prompt.split(), NUMBER.findall(prompt), Counter(prompt)
    second, last = words[min(1, len(words) - 1)], words[-1]
    features: dict[str, float] = {
        "characters": len(prompt),
        "words": len(words),
        "distinct characters": len(counts),
        "digits": sum(map(len, numbers)),
        "numbers": len(numbers),
        "second word: characters": len(second),
        "second word: first": ord(second[0]),
        "second word: last": ord(second[-1]),
        "last word: characters": len(last),
        "last word: first": ord(last[0]),
        "last word: last": ord(last[-1]),
    }
    for name, place in (("first", 0), ("last", -1)):
        number = numbers[place] if numbers else ""
        features[f"{name} number"] = float(number[:NUMBER_DIGITS]) if number else -1
        features[f"{name} number: odd"] = int(number[-1]) % 2 if number else -1
    return features | {f"number of {character!r}": count for character, count in counts.items()}


@dataclass(frozen=True)
class TreeNode:
    """A node of a decision tree: a leaf with `label`, or a split that goes to `below` if `feature` is at most `cut`, else to
    `above`."""

    label: str
    feature: str = ""
    cut: float = 0.0
    below: TreeNode | None = None
    above: TreeNode | None = None

    def guess(self, prompt: str) -> str:
        """Return the label of the leaf that the prompt reaches."""
        seen, node = surface_features(prompt), self
        while node.below is not None and node.above is not None:
            node = node.below if seen.get(node.feature, 0.0) <= node.cut else node.above
        return node.label


def grow_tree(prompts: Sequence[str], labels: Sequence[str]) -> TreeNode:
    """Fit a tree (CART, Breiman et al. 1984) in which each split minimises the Gini impurity.

    Of equally good splits, the first feature by name and the lowest cut are used. The cuts of a feature are its quantiles. The
    tree guesses only the `LABELS` most frequent labels. During fitting, all less frequent labels count as one label.
    """
    rows = [surface_features(prompt) for prompt in prompts]
    names = sorted({name for row in rows for name in row})
    values = np.array([[row.get(name, 0.0) for name in names] for row in rows])  # [problems, features]
    levels = np.linspace(0, 1, CUTS + 2)[1:-1]
    cuts = [np.unique(np.quantile(column, levels, method="inverted_cdf")) for column in values.T]
    cuts = [own[own < column.max()] for own, column in zip(cuts, values.T, strict=True)]
    bins = np.stack([np.searchsorted(own, column) for own, column in zip(cuts, values.T, strict=True)], axis=1)
    common = [label for label, _ in Counter(labels).most_common(LABELS)]
    place = {label: number for number, label in enumerate(common)}
    codes = np.array([place.get(label, len(common)) for label in labels])
    return _grow_node(names, cuts, common, bins, codes, DEPTH)


def _grow_node(
    names: Sequence[str], cuts: Sequence[Floats], common: Sequence[str], bins: Integers, codes: Integers, depth: int
) -> TreeNode:
    counts = np.bincount(codes, minlength=len(common) + 1)
    label = common[int(counts[:-1].argmax())]
    best, feature, at = round(float((counts**2).sum() / len(codes)), 9), -1, -1
    for number in range(len(names)) if depth else ():
        scores = _purity_of_cuts(bins[:, number], codes, counts, len(cuts[number]))
        if len(scores) and scores.max() > best:
            best, feature, at = float(scores.max()), number, int(scores.argmax())
    if feature < 0:
        return TreeNode(label)
    side = bins[:, feature] <= at
    parts = [_grow_node(names, cuts, common, bins[own], codes[own], depth - 1) for own in (side, ~side)]
    return TreeNode(label, names[feature], float(cuts[feature][at]), *parts)


def _purity_of_cuts(bins: Integers, codes: Integers, counts: Integers, cuts: int) -> Floats:
    """Return the purity of each cut of a feature [cuts].

    For each side of a cut, divide the sum of squared label counts by the number of problems on that side. The purity of a cut
    is the sum of the two sides' quotients.

    A cut that leaves fewer than `LEAF` problems on a side has the purity -1.
    """
    width = len(counts)
    table = np.bincount(bins * width + codes, minlength=(cuts + 1) * width).reshape(cuts + 1, width)
    below = table.cumsum(axis=0)[:-1]
    above = counts - below
    few, many = below.sum(axis=1), above.sum(axis=1)
    score = (below**2).sum(axis=1) / np.maximum(few, 1) + (above**2).sum(axis=1) / np.maximum(many, 1)
    return np.where(np.minimum(few, many) >= LEAF, np.round(score, 9), -1.0)
