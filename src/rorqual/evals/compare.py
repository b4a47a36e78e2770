"""Paired comparison of two models on the same problems or passages of text, for one seed or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from rorqual.core.errors import ConfigError, DataError, suggest_name
from rorqual.evals.evaluation import ALL, Evaluation, GradedSample, Grain, family_and_level, mean_per_problem
from rorqual.evals.stats import (
    Difference,
    Floats,
    Interval,
    difference_over_seeds,
    hierarchical_difference,
    mcnemar,
    t_interval,
)
from rorqual.evals.text_loss import TextLoss
from rorqual.evals.verdict import Verdict as SeedsVerdict
from rorqual.evals.verdict import judge
from rorqual.tasks.task import Verdict

SAMPLES = 20_000
"""Number of resamples of a bootstrap over seeds."""
SampleMeasure = Callable[[GradedSample], float]


def is_right(sample: GradedSample) -> float:
    """Return 1.0 if the sample's answer is correct, else 0.0."""
    return float(sample.verdict is Verdict.RIGHT)


def did_think(sample: GradedSample) -> float:
    """Return 1.0 if the model thought before it answered, else 0.0."""
    return float(sample.thought)


@dataclass(frozen=True)
class Comparison:
    """The difference between two models in one cell (family and level). `before` and `after` are the models' means over the same
    problems: shares of right answers, or losses in nats per token (`unit`). `by_seed` lists the means (before, after) of each
    seed.

    `gained` counts the problems whose value rose, and `lost` the problems whose value fell. `left_out` counts problems
    that are ungraded in either evaluation. For one seed, `p_value` is the p-value of McNemar's exact test. For several seeds,
    `p_value` is None, because pairs of different seeds are not independent. `p_value` is also None if a problem has several
    samples, because the mean of a problem's samples is not binary. Losses have no `p_value`.
    """

    family: str
    level: str
    before: float
    after: float
    difference: Difference
    gained: int
    lost: int
    by_seed: tuple[tuple[float, float], ...]
    p_value: float | None = None
    left_out: int = 0
    unit: Literal["points", "nats"] = "points"

    @property
    def seed_differences(self) -> list[float]:
        """The difference `after - before` of each seed."""
        return [after - before for before, after in self.by_seed]

    @property
    def student(self) -> Interval | None:
        """Student's t interval over the seeds' differences, or None for one seed."""
        confidence = self.difference.interval.confidence
        return t_interval(self.seed_differences, confidence) if len(self.by_seed) > 1 else None

    @property
    def verdict(self) -> SeedsVerdict:
        """The verdict on "after is higher than before", by the rule of `rorqual.evals.verdict`."""
        return judge(self.difference.interval, self.seed_differences)

    def to_json(self) -> dict[str, Any]:
        """Return all fields, Student's t interval and the verdict."""
        student = self.student
        return asdict(self) | {"student": student and asdict(student), "verdict": self.verdict}


def compare_pair(
    before: Evaluation,
    after: Evaluation,
    *,
    grain: Grain = "family",
    measure: SampleMeasure = is_right,
    confidence: float = 0.95,
) -> list[Comparison]:
    """Return `after - before` for each cell of `grain`, with the score interval over problems.

    A cell is one family, one family and level, or all problems.

    Raises DataError if the evaluations have different problems.
    """
    return compare_seeds([before], [after], grain=grain, measure=measure, confidence=confidence)


def compare_seeds(
    before: Sequence[Evaluation],
    after: Sequence[Evaluation],
    *,
    grain: Grain = "family",
    measure: SampleMeasure = is_right,
    confidence: float = 0.95,
    samples: int = SAMPLES,
) -> list[Comparison]:
    """Compare several runs that differ in their seed: `before[s]` is paired with `after[s]`.

    With several seeds, the interval of a comparison is the smallest interval that contains both the bootstrap interval over
    seeds and problems and the score interval over all problems. If all seeds have the same problems, only problems that are
    graded in all seeds count, and they are drawn once for all seeds. Problems that seeds draw from one pool are independent,
    even if a few are the same. The coverage of the bootstrap interval is below nominal (see `hierarchical_difference`).
    """
    _check_seeds_and_confidence(before, after, confidence)
    if grain not in get_args(Grain):
        raise ConfigError(f"unknown grain {grain!r}", where="compare", remedy=suggest_name(str(grain), get_args(Grain)))
    for old, new in zip(before, after, strict=True):
        _check_same_problems(old, new)
    cells = dict.fromkeys(family_and_level(sample, grain) for evaluation in before for sample in evaluation.samples)
    compared = (_compare_cell(name, before, after, grain, measure, confidence, samples) for name in cells)
    return [row for row in compared if row is not None]


def compare_texts(
    before: Sequence[TextLoss], after: Sequence[TextLoss], *, confidence: float = 0.95, samples: int = SAMPLES
) -> Comparison:
    """Compare losses on the same text, paired by passage: `before[s]` is paired with `after[s]`.

    The interval is the bootstrap interval over seeds and passages, which all seeds share if their text is the same
    (`hierarchical_difference`). Raises DataError if the passages differ.
    """
    _check_seeds_and_confidence(before, after, confidence)
    for old, new in zip(before, after, strict=True):
        if old.passages != new.passages:
            raise DataError(
                f"the passages differ: {len(old.losses)} of {old.window} tokens of {old.text or 'a text'}, "
                f"and {len(new.losses)} of {new.window} tokens of {new.text or 'a text'}",
                where="compare",
                remedy="Evaluate both models with the same data=FILE.txt and window=. Losses by token need one tokenizer.",
            )
    olds, news = ([np.array(one.losses) for one in side] for side in (before, after))
    shared = all(one.passages == before[0].passages for one in before)
    difference = hierarchical_difference(olds, news, confidence, samples, shared=shared)
    return _comparison(before[0].text or ALL, ALL, olds, news, difference, unit="nats")


def _check_seeds_and_confidence(
    before: Sequence[Evaluation | TextLoss], after: Sequence[Evaluation | TextLoss], confidence: float
) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(
            f"confidence={confidence} is not between 0 and 1", where="compare", remedy="Use, for example, 0.95."
        )
    if len(before) != len(after) or not before:
        raise DataError(
            f"{len(before)} `before` evaluations cannot be paired with {len(after)} `after` evaluations",
            remedy="Give one `before` and one `after` evaluation for each seed.",
        )


def _check_same_problems(before: Evaluation, after: Evaluation) -> None:
    for family in sorted({sample.family for sample in before.samples} & {sample.family for sample in after.samples}):
        old_version, new_version = (evaluation.versions.get(family, 1) for evaluation in (before, after))
        if old_version != new_version:
            raise DataError(
                f"one evaluation has version {old_version} of the problems of '{family}', the other has version {new_version}",
                where="compare",
                remedy="Repeat both evaluations with this version of Rorqual.",
            )
    old, new = set(before.problem_keys), set(after.problem_keys)
    if old == new and before.task == after.task:
        return
    odd = sorted(old ^ new)[:1]
    raise DataError(
        f"the evaluations have different problems: {len(old)} of '{before.task}' ({before.split}, seed {before.seed}) "
        f"and {len(new)} of '{after.task}' ({after.split}, seed {after.seed})"
        + (f"; only one has '{odd[0]}'" if odd else ""),
        where="compare",
        remedy="Run both evaluations with the same task, split, count and seed; `rorqual teach` needs the same test=FILE.",
    )


def _pair_values(
    before: Evaluation, after: Evaluation, name: tuple[str, str], grain: Grain, measure: SampleMeasure
) -> tuple[dict[str, tuple[float, float]], set[str], bool]:
    """Return the values before and after of each problem that is graded in both evaluations, the keys of all problems, and
    whether each problem has one sample."""
    sides = []
    for evaluation in (before, after):
        chosen = [sample for sample in evaluation.samples if family_and_level(sample, grain) == name]
        usable = [sample for sample in chosen if measure is not is_right or sample.verdict is not Verdict.UNGRADED]
        sides.append((mean_per_problem(usable, measure), {s.key for s in chosen}, len(usable)))
    (old, asked, old_samples), (new, _, new_samples) = sides
    single = old_samples == len(old) and new_samples == len(new)
    return {key: (old[key], new[key]) for key in old if key in new}, asked, single


def _compare_cell(
    name: tuple[str, str],
    before: Sequence[Evaluation],
    after: Sequence[Evaluation],
    grain: Grain,
    measure: SampleMeasure,
    confidence: float,
    samples: int,
) -> Comparison | None:
    pairs = [_pair_values(old, new, name, grain, measure) for old, new in zip(before, after, strict=True)]
    pairs = [pair for pair in pairs if pair[0]]
    values = [pair[0] for pair in pairs]
    common = [key for key in values[0] if all(key in value for value in values)] if values else []
    shared = len(values) > 1 and all(asked == pairs[0][1] for _, asked, _ in pairs)
    keys = [common if shared else list(value) for value in values]
    if not any(keys):
        return None
    olds, news = (
        [np.array([value[key][side] for key in chosen]) for value, chosen in zip(values, keys)] for side in (0, 1)
    )
    difference = difference_over_seeds(olds, news, confidence, samples, shared=shared)
    p_value = mcnemar(olds[0] > 0.5, news[0] > 0.5) if pairs[0][2] and len(pairs) == 1 else None
    left_out = sum(len(pair[1]) for pair in pairs) - sum(map(len, keys))
    return _comparison(*name, olds, news, difference, p_value=p_value, left_out=left_out)


def _comparison(
    family: str, level: str, befores: Sequence[Floats], afters: Sequence[Floats], difference: Difference, **more: Any
) -> Comparison:
    by_seed = tuple((float(old.mean()), float(new.mean())) for old, new in zip(befores, afters, strict=True))
    before, after = np.mean(by_seed, axis=0).tolist()
    rises = np.concatenate(afters) - np.concatenate(befores)
    return Comparison(
        family=family,
        level=level,
        before=before,
        after=after,
        difference=difference,
        gained=int((rises > 0).sum()),
        lost=int((rises < 0).sum()),
        by_seed=by_seed,
        **more,
    )
