"""The finding of the experiment `answers`: each way to get an answer against the greedy answer, and the verdict on early stopping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rorqual.core.records import RunDir
from rorqual.evals.cascade import Cascade, asked_shares, calibrate
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.table import percent
from rorqual.evals.verdict import Verdict, together
from rorqual.evals.votes import SURE, RuleResult, refine_results, rule_results
from rorqual.lab.finding import Chart, Contrast, Series, Table, contrast_of_values, ends_text
from rorqual.lab.job import evaluation, evaluation_file
from rorqual.model.account import account
from rorqual.model.load.run import read_model_config

BIG, LITTLE, SIXTEEN, SCORED = "answers-model", "answers-little", "answers-model-sixteen", "scored"
GREEDY, VOTES, STOP, BOUND = "greedy", "majority of 16", f"majority of 16, until {SURE:.0%} sure", "any right"
SAVED, POINTS = 0.3, 0.01
"""The goals of early stopping: the smallest share of tokens saved, and the largest loss of accuracy."""
SHARES = (0.25, 0.5)
"""Shares of problems that the cascade's teacher answers."""


@dataclass(frozen=True)
class Way:
    """One way to get an answer, on the problems of one seed: the probability that each answer is right, its tokens, and its FLOPs."""

    values: tuple[float, ...]
    tokens: tuple[float, ...]
    flops: tuple[float, ...]


Ways = Mapping[str, Way]


def ways(place: Path, budgets: Sequence[int]) -> dict[str, Way]:
    """Return all ways of one seed, by name. The problems have the same order in all of them."""
    flops = _flops(place / BIG)
    scored = sampled(place)
    keys = scored.keys

    def way(rule: RuleResult) -> Way:
        values = tuple(value or 0.0 for value in rule.values)
        return Way(values, rule.costs, tuple(cost * flops for cost in rule.costs))

    def single(name: str) -> RuleResult:
        found = evaluation(place, f"{BIG}-{name}")
        assert found.keys == keys
        return rule_results(found)[0]

    named = {GREEDY: way(single(GREEDY))}
    for rule in rule_results(scored):
        named[_name(rule)] = way(rule)
    for budget in budgets:
        named[f"thinking budget of {budget}"] = way(single(f"budget-{budget}"))
    for rule in refine_results(evaluation(place, f"{BIG}-refined"))[1:]:
        named[rule.rule] = way(rule)
    return named | cascade_ways(cascade_of(place), keys)


def sampled(place: Path) -> Evaluation:
    """Return the sixteen samples, with the verifier's scores if there is a verifier."""
    return evaluation(place, SCORED if evaluation_file(place, SCORED).is_file() else SIXTEEN)


def _name(rule: RuleResult) -> str:
    if rule.samples == 1:
        return "one sample"
    name, comma, rest = rule.rule.removesuffix(" (bound)").partition(",")
    return f"{name} of {rule.samples}{comma}{rest}"


def _flops(run: Path) -> float:
    return float(account(read_model_config(RunDir(run))).flops)


def cascade_of(place: Path) -> Cascade:
    """Return the cascade of the small and the large model of one seed."""
    return Cascade(
        student=evaluation(place, f"{LITTLE}-{GREEDY}"),
        teacher=evaluation(place, f"{BIG}-{GREEDY}"),
        calibration=calibrate(evaluation(place, f"{LITTLE}-{GREEDY}-dev")),
        sure=0.8,
        flops=(_flops(place / LITTLE), _flops(place / BIG)),
    )


def cascade_ways(cascade: Cascade, keys: Sequence[str]) -> dict[str, Way]:
    """Return the small model alone, and the cascade in which the teacher answers each share of `SHARES`, chosen by confidence or at
    random. A random choice counts by its expectation."""
    ranked = cascade.choices()
    choices = {choice.key: choice for choice in ranked}
    order = [choices[key] for key in keys]
    assert cascade.flops is not None
    little, big = cascade.flops

    def way(asked: Mapping[str, float]) -> Way:
        shares = [asked.get(choice.key, 0.0) for choice in order]
        pairs = list(zip(order, shares, strict=True))
        return Way(
            tuple((1 - share) * c.student + share * c.teacher for c, share in pairs),
            tuple(c.student_tokens + share * c.teacher_tokens for c, share in pairs),
            tuple(little * c.student_tokens + big * share * c.teacher_tokens for c, share in pairs),
        )

    found = {"small model": way({})}
    for share in SHARES:
        asked = round(share * len(order))
        chosen = dict(zip(choices, asked_shares(asked, ranked), strict=True))
        found[f"cascade, {share:.0%} to the large model"] = way(chosen)
        found[f"cascade, {share:.0%} at random"] = way(dict.fromkeys(choices, asked / len(order)))
    return found


def conclusion(places: Mapping[int, Path], budgets: Sequence[int]) -> dict[str, Any]:
    """Return the fields of the finding. The verdict is on early stopping, and the other ways are compared without a verdict."""
    by_seed = [ways(place, budgets) for place in places.values()]
    names = [name for name in by_seed[0] if name != GREEDY]
    saved, kept = saving(by_seed)
    against = {name: compared(by_seed, GREEDY, name) for name in names}
    chosen = [
        compared(by_seed, f"cascade, {share:.0%} at random", f"cascade, {share:.0%} to the large model")
        for share in SHARES
    ]
    texts = (
        f"Stopping when {SURE:.0%} sure uses {-saved.difference:.1%} fewer tokens than all 16 votes ({ends_text(saved)} as a difference "
        f"in shares), and changes accuracy by {100 * kept.difference:+.1f} points ({ends_text(kept)}).",
        *_grouped_words(against),
        *(
            f"A cascade whose confidence chooses the problems ({contrast.of}) is {100 * contrast.difference:+.1f} points better than "
            f"one that chooses at random ({ends_text(contrast)})."
            for contrast in chosen
        ),
    )
    return {
        "verdict": judged(saved, kept),
        "words": texts,
        "contrasts": (saved, kept, *chosen, *against.values()),
        "tables": (ways_table(by_seed, against), families_table(places, by_seed), bins_table(places)),
        "charts": (chart(by_seed, budgets),),
    }


def judged(saved: Contrast, kept: Contrast) -> Verdict:
    """Return the verdict on early stopping, from the contrasts of tokens and of accuracy."""
    return together([saved.judge(-SAVED, "below"), kept.judge(-POINTS)])


def compared(by_seed: Sequence[Ways], a: str, b: str) -> Contrast:
    """Return the contrast of accuracy of two ways: `b` minus `a`."""
    sides = [[one[name].values for one in by_seed] for name in (a, b)]
    return contrast_of_values(f"accuracy: {a}, then the way in the row", *sides, unit="points", of=b)


def saving(by_seed: Sequence[Ways]) -> tuple[Contrast, Contrast]:
    """Return the contrasts of tokens (as shares of those of 16 votes) and of accuracy: early stopping minus 16 votes."""
    sides: list[list[list[float]]] = [[], []]
    for one in by_seed:
        scale = fmean(one[VOTES].tokens)
        for side, name in zip(sides, (VOTES, STOP), strict=True):
            side.append([tokens / scale for tokens in one[name].tokens])
    return contrast_of_values(f"tokens: {VOTES}, then the way in the row", *sides, unit="ratio", of=STOP), compared(
        by_seed, VOTES, STOP
    )


def _grouped_words(against: Mapping[str, Contrast]) -> list[str]:
    """Return sentences that name the ways above, below and near the greedy answer. The bound is no way to answer."""
    groups: dict[str, list[str]] = {"holds": [], "does not hold": [], "open": []}
    for name, contrast in against.items():
        if not name.startswith(BOUND):
            groups[contrast.sign].append(f"{name} ({100 * contrast.difference:+.1f})")
    titles = {
        "holds": "More accurate than the greedy answer, in points",
        "does not hold": "Less accurate",
        "open": "No difference by both intervals",
    }
    return [f"{titles[sign]}: {', '.join(names)}." for sign, names in groups.items() if names]


def ways_table(by_seed: Sequence[Ways], against: Mapping[str, Contrast]) -> Table:
    """Return accuracy and cost of each way, as means over seeds. Bounds are last."""
    names = sorted(by_seed[0], key=lambda name: name.startswith(BOUND))
    rows = []
    for name in names:
        accuracy, tokens, flops = (
            fmean(fmean(getattr(one[name], field)) for one in by_seed) for field in ("values", "tokens", "flops")
        )
        contrast = against.get(name)
        ends = "" if contrast is None else f"{100 * contrast.ends.low:+.1f} to {100 * contrast.ends.high:+.1f}"
        difference = "" if contrast is None else f"{100 * contrast.difference:+.1f}"
        shown = f"{name} (bound)" if name.startswith(BOUND) else name
        rows.append((shown, percent(accuracy), difference, ends, f"{tokens:.1f}", f"{flops / 1e6:.1f}"))
    heads = (
        "way",
        "accuracy, %",
        "minus greedy",
        "99 % interval, the wider",
        "tokens per problem",
        "MFLOPs per problem",
    )
    note = (
        "Tokens and FLOPs are those of generation. A verifier also reads each reply once, which is not counted. "
        "A bound needs the right answer, so it is no way to answer."
    )
    return Table(title="All ways", heads=heads, rows=tuple(rows), note=note)


def families_table(places: Mapping[int, Path], by_seed: Sequence[Ways]) -> Table:
    """Return the accuracy of the main ways by family, and the tokens that early stopping saves."""
    shown = (GREEDY, VOTES, STOP, "best by verifier of 16", f"{BOUND} of 16")
    families: dict[str, list[list[int]]] = {}
    for number, place in enumerate(places.values()):
        found = sampled(place)
        family_of = {sample.key: sample.family for sample in found.samples}
        for index, key in enumerate(found.keys):
            families.setdefault(family_of[key], [[] for _ in by_seed])[number].append(index)
    rows = []
    for family, members in families.items():
        cells = [
            percent(
                fmean(
                    fmean(one[name].values[i] for i in places_) for one, places_ in zip(by_seed, members, strict=True)
                )
            )
            for name in shown
            if name in by_seed[0]
        ]
        saved = fmean(
            1 - sum(one[STOP].tokens[i] for i in places_) / sum(one[VOTES].tokens[i] for i in places_)
            for one, places_ in zip(by_seed, members, strict=True)
        )
        rows.append((family, *cells, percent(saved)))
    heads = ("family", *(f"{name}, %" for name in shown if name in by_seed[0]), "tokens saved by stopping, %")
    return Table(title="By family", heads=heads, rows=tuple(rows), note="Means over seeds.")


def bins_table(places: Mapping[int, Path]) -> Table:
    """Return the calibration of the small model on test problems, as means over seeds."""
    bins = zip(*(cascade_of(place).bins() for place in places.values()), strict=True)
    rows = tuple(
        (f"{number}", percent(fmean(one.confidence for one in some)), percent(fmean(one.accuracy for one in some)))
        for number, some in enumerate(bins, 1)
    )
    heads = ("fifth of the problems", "confidence, %", "right, %")
    return Table(title="Calibration of the small model", heads=heads, rows=rows, note="Calibrated on the dev split.")


def chart(by_seed: Sequence[Ways], budgets: Sequence[int]) -> Chart:
    """Return the chart of accuracy over tokens."""
    sizes = (2, 4, 8, 16)
    lines = {
        "majority": ["one sample", *(f"majority of {size}" for size in sizes)],
        "most likely": ["one sample", *(f"most likely of {size}" for size in sizes)],
        "best by verifier": ["one sample", *(f"best by verifier of {size}" for size in sizes)],
        "early stopping": [STOP, f"{VOTES}, until settled"],
        "thinking budget": [f"thinking budget of {budget}" for budget in budgets] + [GREEDY],
        "any right (bound)": ["one sample", *(f"{BOUND} of {size}" for size in sizes)],
    }

    def points(one: Sequence[Ways], names: Sequence[str]) -> tuple[tuple[float, float], ...]:
        return tuple((fmean(fmean(w[n].tokens) for w in one), fmean(fmean(w[n].values) for w in one)) for n in names)

    series = tuple(
        Series(label=label, points=points(by_seed, known), by_seed=tuple(points([one], known) for one in by_seed))
        for label, names in lines.items()
        if (known := [name for name in names if name in by_seed[0]])
    )
    return Chart(
        name="ways",
        title="Accuracy over tokens",
        x="generated tokens per problem",
        y="accuracy",
        series=series,
        percent=True,
        caption="Means over seeds; faint lines: each seed. The bound needs the right answer. The thinking budget ends at the greedy answer.",
    )
