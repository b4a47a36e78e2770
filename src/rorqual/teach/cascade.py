"""A cascade of two rungs: a fast one answers where it is sure, and a costlier one the rest."""

from __future__ import annotations

from collections.abc import Sequence

from rorqual.evals.table import percent
from rorqual.report.table import Table
from rorqual.teach.answerer import Step
from rorqual.teach.held_out import HeldOut
from rorqual.teach.promise import calibrate

SLOW, FASTER = 0.05, 5.0
"""A rung that answers in less than `SLOW` seconds needs no first rung. The first rung must answer `FASTER` times faster than the second."""
FEWEST = 0.2
"""The first rung must answer at least this share of the prompts."""
LEVELS = 5
"""Number of levels of difficulty in the table of a cascade."""


def first_step(cheaper: Sequence[HeldOut], chosen: HeldOut) -> Step | None:
    """Return the first step of a cascade before the rung `chosen`, or None if no rung of `cheaper` is of use.

    The threshold is the lowest above which the first rung is at least as often right as `chosen`, on the held-out examples that both
    answered. Of several rungs, the one that then answers the most is used.
    """
    found = [
        (share, step)
        for one in cheaper
        if chosen.answer_seconds >= SLOW and FASTER * one.answer_seconds <= chosen.answer_seconds
        for share, step in [_threshold(one, chosen)]
        if share >= FEWEST
    ]
    return max(found, key=lambda pair: pair[0], default=(0.0, None))[1]


def _threshold(first: HeldOut, chosen: HeldOut) -> tuple[float, Step]:
    """Return the share of examples that `first` answers before `chosen`, and its step."""
    shared = sorted(chosen.right.keys() & first.right.keys(), key=lambda key: (-first.probability[key], key))
    gain, answered, above = 0, 0, 1.0
    for place, key in enumerate(shared, 1):
        gain += first.right[key] - chosen.right[key]
        is_last_of_its_value = place == len(shared) or first.probability[shared[place]] < first.probability[key]
        if gain >= 0 and is_last_of_its_value:
            answered, above = place, first.probability[key]
    calibration = calibrate([*first.probability.values()], [*first.right.values()])
    return answered / max(1, len(shared)), Step(rung=first.name, calibration=calibration, above=above)


def combined(steps: Sequence[Step], results: Sequence[HeldOut]) -> HeldOut:
    """Return the held-out answers of an answerer with these steps, and their calibrated probabilities. `results` are those of the steps."""
    *early, last = zip(steps, results, strict=True)
    right: dict[str, bool] = {}
    probability: dict[str, float] = {}
    seconds = {one.name: 0 for one in results}
    for key in last[1].right.keys() & results[0].right.keys():
        step, one = next(((step, one) for step, one in early if one.probability[key] >= step.above), last)
        right[key], probability[key] = one.right[key], step.calibration.probability(one.probability[key])
        seconds[one.name] += 1
    passed = seconds[last[1].name] / max(1, len(right))
    time = last[1].answer_seconds if not early else results[0].answer_seconds + passed * last[1].answer_seconds
    return HeldOut(
        ", then ".join(one.name for one in results), right, probability, time, sum(one.fit_seconds for one in results)
    )


def cascade_table(step: Step, first: HeldOut, chosen: HeldOut) -> Table:
    """Return a table of the accuracy of both rungs by how sure the first one is: fifths of the held-out examples, the surest first."""
    shared = sorted(chosen.right.keys() & first.right.keys(), key=lambda key: (-first.probability[key], key))
    rows = []
    for level in range(LEVELS):
        keys = shared[level * len(shared) // LEVELS : (level + 1) * len(shared) // LEVELS]
        if keys:
            answered = sum(first.probability[key] >= step.above for key in keys)
            shares = (sum(one.right[key] for key in keys) / len(keys) for one in (first, chosen))
            rows.append((f"{level + 1}", f"{len(keys):,}", *map(percent, shares), f"{answered:,}"))
    heads = ("fifth, the surest first", "examples", f"{first.name} %", f"{chosen.name} %", f"answered by {first.name}")
    return Table(title="By how sure the first rung is, on held-out examples", heads=heads, rows=rows)
