"""How a change of a model, such as sparse attention or quantised weights, changes its predictions of the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from rorqual.core.errors import DataError
from rorqual.data.tokenizer import Tokenizer
from rorqual.evals.stats import Difference, Interval, paired_interval, t_interval, wilson


class NamedText(NamedTuple):
    """A text and its name, such as the name of the text's file."""

    name: str
    text: str

    def windows(self, tokenizer: Tokenizer, length: int, most: int) -> list[tuple[int, ...]]:
        """Return the first windows of the text, at most `most`, each with `length` tokens and the token after them. Raises DataError if
        there are fewer than two."""
        ids = tokenizer.encode(self.text)
        number = min(most, (len(ids) - 1) // length)
        if number < 2:
            raise DataError(
                f"the text has {len(ids)} tokens, which do not fill two windows of {length}",
                where=self.name,
                remedy="Give a longer text (only its last tenth is read), or a smaller length=.",
            )
        return [tuple(ids[i * length : (i + 1) * length + 1]) for i in range(number)]


@dataclass(frozen=True)
class PassageDamage:
    """What changes on the `scored` positions of one passage. All values are means over these positions.

    `kl` is KL(before || after) of the next-token distribution in nats. `changed` is the share of positions whose most likely next
    token changes. `right` is the share of positions whose most likely token is the target. `loss` is the loss in nats.
    """

    scored: int
    kl: float
    changed: float
    right: float
    right_before: float
    loss: float
    loss_before: float


@dataclass(frozen=True)
class DamageSummary:
    """Means over passages, with 95 % intervals of `kl`, `changed` and `lost` (`right_before` - `right`). `scored` is the number of
    compared predictions."""

    scored: int
    kl: Difference
    changed: Difference
    lost: Difference
    right_before: float


def compare_predictions(before: Tensor, after: Tensor, targets: Tensor) -> PassageDamage:
    """Compare log-probabilities [positions, vocab] of the `targets` [positions]."""
    best = [logprobs.argmax(-1) for logprobs in (after, before)]
    values = (
        (before.exp() * (before - after)).sum(-1),
        best[0] != best[1],
        *(tokens == targets for tokens in best),
        *(-logprobs.gather(1, targets[:, None]) for logprobs in (after, before)),
    )
    return PassageDamage(len(targets), *(float(value.double().mean()) for value in values))


def mean_damage(passages: Sequence[PassageDamage]) -> PassageDamage:
    """Return the means over passages that are not independent, such as one planted text at several depths."""
    rows = np.array([astuple(one) for one in passages])
    return PassageDamage(int(rows[:, 0].sum()), *rows[:, 1:].mean(0).tolist())


def summarise(passages: Sequence[PassageDamage]) -> DamageSummary:
    """Return the means over at least two passages, each with its interval.

    The intervals are Student's t over passages. Those of `changed` and `lost` also cover the score interval over tokens, so
    passages without a change do not give an interval of zero width.
    """
    counts, kl, changed, after, before = (
        np.array([getattr(one, name) for one in passages])
        for name in ("scored", "kl", "changed", "right", "right_before")
    )
    scored, lost = int(counts.sum()), before - after
    changes = wilson(float((changed * counts).sum()), scored)
    more, fewer = (float((part.clip(0) * counts).sum()) for part in (lost, -lost))
    return DamageSummary(
        scored=scored,
        kl=Difference(float(kl.mean()), t_interval(kl), len(passages)),
        changed=Difference(float(changed.mean()), _union(t_interval(changed), changes), len(passages)),
        lost=Difference(
            float(lost.mean()), _union(t_interval(lost), paired_interval(more, fewer, scored)), len(passages)
        ),
        right_before=float(before.mean()),
    )


def limits_exceeded(summaries: Mapping[str, DamageSummary], limits: Mapping[str, float]) -> list[str]:
    """Return a sentence for each limit that the upper end of an interval exceeds. `limits` maps names of differences (kl, changed or
    lost) to the largest acceptable values."""
    return [
        f"{name}: {field} may be {high:.3g}, above max_{field}={limit:g}"
        for name, damage in summaries.items()
        for field, limit in limits.items()
        if not (high := getattr(damage, field).interval.high) <= limit  # NaN exceeds every limit
    ]


def _union(one: Interval, other: Interval) -> Interval:
    return Interval(min(one.low, other.low), max(one.high, other.high))
