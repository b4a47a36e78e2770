"""The experiment `compute`: does a router with identity experts use more experts for difficult tokens and problems, and is the
loss lower than with a fixed number of experts?

The difficulty of a token in a held-out worked solution is the loss of the next token, measured with the model with a fixed
number of experts. The difficulty of a problem is its level. Each difference between hard and easy is compared with a control
whose difficulties are permuted.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rorqual.data.pack import PADDING
from rorqual.evals.compute import experts_used
from rorqual.lab.experiment import ArmPair, Quantity, Readings, scale_amount, values_in_group_all
from rorqual.lab.held_out import first_problems, load_trained, run_on_sample_blocks, solution_samples
from rorqual.lab.job import ComputeJob, ExperimentJob, load_value
from rorqual.lab.shape_experiment import ShapeExperiment
from rorqual.lab.shapes import DOCUMENTS, FIXED, FIXED_CLOCK, HARD, TASK, ZERO

HARD_SHARE = 0.25
"""The share of tokens, or of the occurrences of a token id, that count as hard, because their losses are the highest. All other
tokens or occurrences are easy."""
LEAST = 20
"""Hard and easy occurrences of a token id are compared only if the token id occurs at least `LEAST` times."""
SHUFFLES = 20
"""Number of permutations of the difficulties. The control of a difference is the mean of the difference over these
permutations."""
PARTS = {
    "tokens": "hard tokens minus easy tokens",
    "same token": "hard minus easy occurrences of the same token",
    "problems": "hard minus easy problems of the same family",
}
Array = NDArray[Any]


class ComputeExperiment(ShapeExperiment):
    """The experiment on identity experts. The model of each arm has 16 experts with weights. One arm uses two experts for every
    token, and the other arm uses two experts per token on average."""

    def __init__(self) -> None:
        super().__init__(
            name="compute",
            title="Computation by difficulty",
            claim="a router that may choose identity experts spends more experts on hard tokens, also among occurrences of the same "
            "token, and on hard problems. It is better than a fixed number of experts at an equal mean number, and also at equal time",
            source="LongCat-Flash, 2509.01322, section 2.1",
            parts=(("experts per token", ZERO, FIXED), ("core-seconds", ZERO, FIXED_CLOCK)),
        )
        self.quantities = {**self.quantities, **dict.fromkeys(PARTS, Quantity("experts"))}
        self.arms = {**self.arms, "shuffled": "permuted difficulty", "real": "real difficulty"}
        self.wording = {
            **self.wording,
            **{part: f"the number of experts on {text}" for part, text in PARTS.items()},
            "shuffled": "with permuted difficulty",
            "real": "with the real difficulty",
        }
        self.pairs = (
            *self.pairs,
            *(
                ArmPair(
                    question=f"experts on {text}: permuted, then real difficulty",
                    quantity=part,
                    a="shuffled",
                    b="real",
                    claimed=("all",),
                )
                for part, text in PARTS.items()
            ),
        )

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        counted = [
            ComputeJob(
                name=f"{name}-experts",
                estimate=3 * share,
                needs=tuple({name, FIXED}),
                function=partial(measure_experts_spent, name=name, seed=seed, count=scale_amount(DOCUMENTS, share)),
            )
            for name in (ZERO, FIXED)
        ]
        return [*super().jobs(seed, place, share), *counted]

    def runs_of(self, arm: str) -> tuple[str, ...]:
        return (ZERO, FIXED) if arm in ("shuffled", "real") else (arm,)

    def read(self, place: Path) -> Readings:
        zero, fixed = (load_value(place, f"{name}-experts") for name in (ZERO, FIXED))
        return {
            **super().read(place),
            "experts per token": {
                ZERO: values_in_group_all([zero["mean"]]),
                FIXED: values_in_group_all([fixed["mean"]]),
            },
            **{part: {side: values_in_group_all(zero[part][side]) for side in ("shuffled", "real")} for part in PARTS},
        }


def measure_experts_spent(place: Path, *, name: str, seed: int, count: int) -> dict[str, Any]:
    """Count the experts that the run `name` uses for each token of `count` held-out solutions. Compare hard with easy tokens
    and problems.

    `mean` is the mean number of experts over all tokens. For each comparison in `PARTS`, two lists of differences in experts
    per token and layer are returned: `real`, and `shuffled` for permuted difficulties. A list has one difference per document,
    or one difference per pair of problems for the comparison "problems".
    """
    problems = first_problems(TASK, HARD, "test", seed, count)
    (model, chat), (rival, _) = (load_trained(place / run) for run in (name, FIXED))
    samples = solution_samples(problems, chat)
    everywhere, parts, start = [], [], 0
    for own, other in zip(run_on_sample_blocks(model, samples), run_on_sample_blocks(rival, samples), strict=True):
        chosen = torch.stack([layer.indices for layer in own.output.routing], dim=1)  # [tokens, layers, k]
        used = experts_used(chosen, model.config).view(own.losses.shape)
        row, at = own.batch.loss_mask.nonzero(as_tuple=True)
        parts.append((row + start, used[row, at], other.losses[row, at], own.batch.tokens[row, at]))
        everywhere.append(used[own.batch.segments != PADDING])
        start += len(used)
    document, written, loss, ids = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    rng = np.random.default_rng(seed)
    result: dict[str, Any] = {"mean": float(torch.cat(everywhere).mean())}
    same = _residuals(written, ids)
    for part, experts, groups in (("tokens", written, np.zeros_like(ids)), ("same token", same, ids)):
        result[part] = _real_and_shuffled(
            lambda d, e=experts, g=groups: hard_minus_easy_by_document(e, hard_mask(d, g), document), loss, groups, rng
        )
    replies = np.bincount(document, written, count) / np.bincount(document, minlength=count)
    levels = np.array([problem.level == "hard" for problem in problems], float)
    families = np.unique([problem.family for problem in problems], return_inverse=True)[1]
    result["problems"] = _real_and_shuffled(
        lambda d: hard_minus_easy_by_pair(replies, d, families), levels, families, rng
    )
    return result


def _residuals(values: Array, ids: Array) -> Array:
    """Return each value minus the mean of all values with the same token id, or NaN for token ids with fewer than `LEAST`
    values."""
    counts = np.bincount(ids)
    means = np.bincount(ids, values) / np.maximum(counts, 1)
    return np.where(counts[ids] >= LEAST, values - means[ids], np.nan)


def hard_mask(difficulty: Array, groups: Array) -> NDArray[np.bool_]:
    """Return for each difficulty [n] whether it belongs to the highest share `HARD_SHARE` of its group. Of equal difficulties,
    a later one counts as higher."""
    hard = np.zeros(len(difficulty), bool)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        order = members[np.argsort(difficulty[members], kind="stable")]
        hard[order[len(order) - round(HARD_SHARE * len(order)) :]] = True
    return hard


def hard_minus_easy_by_document(values: Array, hard: NDArray[np.bool_], document: Array) -> Array:
    """Return for each document the mean value of its hard tokens minus the mean value of its easy tokens, or NaN if the
    document lacks hard or easy tokens. Tokens with the value NaN are left out."""
    counted, length = ~np.isnan(values), int(document.max()) + 1
    means = []
    for side in (hard, ~hard):
        chosen = side & counted
        with np.errstate(invalid="ignore"):
            means.append(
                np.bincount(document[chosen], values[chosen], length) / np.bincount(document[chosen], minlength=length)
            )
    return means[0] - means[1]


def hard_minus_easy_by_pair(values: Array, hard: Array, families: Array) -> Array:
    """Return, family by family, the value of the i-th hard problem minus the value of the i-th easy problem.

    A permutation of the difficulties within families does not change the number of pairs. So every permutation returns equally
    many values, and the caller averages the i-th values of all permutations.
    """
    differences = []
    for family in np.unique(families):
        sides = [np.flatnonzero((families == family) & (hard == level)) for level in (1, 0)]
        pairs = min(map(len, sides))
        differences.append(values[sides[0][:pairs]] - values[sides[1][:pairs]])
    return np.concatenate(differences)


def _real_and_shuffled(
    compare: Any, difficulty: Array, groups: Array, rng: np.random.Generator
) -> dict[str, list[float]]:
    """Return the differences between hard and easy with the real difficulties, and the mean differences over `SHUFFLES`
    permutations of the difficulties within groups.
    """
    real = compare(difficulty)
    total, found = np.zeros(len(real)), np.zeros(len(real))
    for _ in range(SHUFFLES):
        permuted = difficulty.copy()
        for group in np.unique(groups):
            members = np.flatnonzero(groups == group)
            permuted[members] = difficulty[rng.permutation(members)]
        control = compare(permuted)
        total, found = total + np.nan_to_num(control), found + ~np.isnan(control)
    kept = ~np.isnan(real) & (found > 0)
    return {"real": real[kept].tolist(), "shuffled": (total[kept] / found[kept]).tolist()}
