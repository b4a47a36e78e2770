"""What the jobs of `experts` show together: bits, what a family loses, the verdict's rule, tables and charts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

import numpy as np

from rorqual.evals.verdict import Verdict, together
from rorqual.evals.verdicts import Verdicts
from rorqual.lab.finding import Chart, Contrast, Series, Table, contrast_of_values
from rorqual.recipes.quickstart import TASK

GONE = 2
"""Experts taken away in each layer: as many as serve a token."""
RANDOM = 6
"""Draws of as many random experts."""
WITHIN = {"any": "over all tokens", "token": "within one token id", "pair": "within one token id and the one before it"}
P_VALUE = 0.01

Value = dict[str, Any]


def lost(one: Value, family: str, names: Iterable[str], what: str) -> np.ndarray:
    """What each problem of `family` loses, mean over the ablations `names`: `what` is "right" (accuracy) or "loss" (nats)."""
    mine = np.asarray([name == family for name in one["family"]])
    sign = 1 if what == "right" else -1
    whole = np.asarray(one[what]["none"], float)[mine]
    return np.mean([sign * (whole - np.asarray(one[what][name], float)[mine]) for name in names], axis=0)


def rivals(one: Value, family: str) -> dict[str, list[str]]:
    """Names of ablations that a family's own is compared with."""
    return {
        "another family's": [name for name in one["families"] if name != family],
        "random": [name for name in one["gone"] if name not in one["families"]],
    }


def hurt_contrasts(taken: Sequence[Value]) -> list[Contrast]:
    """What families lose with others' or random experts gone, then with their own: in accuracy, over all and each; then in nats."""
    families = taken[0]["families"]
    found = []
    for what, unit in (("right", "points"), ("loss", "nats")):
        for rival in rivals(taken[0], families[0]):
            of: dict[str, Sequence[str]] = {"all": families} | ({f: [f] for f in families} if what == "right" else {})
            for label, group in of.items():
                found.append(
                    contrast_of_values(
                        f"{'accuracy lost' if what == 'right' else 'loss added'}: {rival} experts gone, then its own",
                        [
                            np.concatenate([lost(one, f, rivals(one, f)[rival], what) for f in group]).tolist()
                            for one in taken
                        ],
                        [np.concatenate([lost(one, f, [f], what) for f in group]).tolist() for one in taken],
                        unit="points" if unit == "points" else "nats",
                        of=label,
                    )
                )
    return found


def ablation_verdicts(taken: Sequence[Value], seeds: Sequence[int]) -> Verdicts:
    """Every problem's verdict with nothing gone and with each set of experts gone; problems by family, as they were drawn."""
    families = sorted(taken[0]["families"])
    orders = [[i for f in families for i, own in enumerate(one["family"]) if own == f] for one in taken]
    counts = [" | ".join(f"{f}: {one['family'].count(f)}" for f in families) for one in taken]
    lines = {
        f"experts gone: {name}": tuple(
            "".join(str(one["right"][name][i]) for i in order) for one, order in zip(taken, orders, strict=True)
        )
        for name in taken[0]["right"]
    }
    return Verdicts(task=TASK, split="test", seeds=tuple(seeds), groups=tuple(counts), right=lines)


def information_contrasts(said: Sequence[Value]) -> Iterable[Contrast]:
    """Bits of shuffled labels, then of the true ones, by layer."""
    for name, label in WITHIN.items():
        for layer in range(len(said[0][name])):
            yield contrast_of_values(
                f"bits that expert and family share, {label}: families shuffled, then as they are",
                [[one[name][layer]["chance"]] for one in said],
                [[one[name][layer]["bits"]] for one in said],
                unit="bits",
                of=f"layer {layer + 1}",
            )


def decide(bits: Iterable[Contrast], hurt: Iterable[Contrast]) -> Verdict:
    """Holds: in every layer more bits than shuffled labels give, also within one token id, and a family loses more accuracy with its
    own experts gone than with another's, and than with random ones; each by the rule of `rorqual.evals.verdict`.
    """
    pair = WITHIN["pair"]
    parts = [one for one in bits if pair not in one.question]
    parts += [one for one in hurt if one.of == "all" and one.unit == "points"]
    return together([one.sign for one in parts])


def words(said: Sequence[Value], hurt: Sequence[Contrast], taken: Sequence[Value]) -> tuple[str, ...]:
    """What came out, in sentences."""
    entropy = np.log2(len(taken[0]["families"]))
    lines = []
    for name, label in WITHIN.items():
        layers = [layer for one in said for layer in one[name]]
        beyond = sum(layer["p"] <= P_VALUE for layer in layers)
        lines.append(
            f"{label.capitalize()}, the expert says {mean(x['bits'] for x in layers):.3f} bits of the family (which is {entropy:.2f}); "
            f"with families shuffled it would say {mean(x['chance'] for x in layers):.3f}. It is more than chance, p at most {P_VALUE}, in "
            f"{beyond} of {len(layers)} layers and seeds."
        )
    lines += [sentence(one) for one in hurt if one.of == "all"]
    rows = [one for one in hurt if one.of != "all" and "another" in one.question]
    worse = [one.of for one in rows if one.sign == "holds"]
    rest = [one.of for one in rows if one.sign != "holds"]
    lines.append(
        f"Family by family, {len(worse)} of {len(rows)} lose more accuracy with their own experts gone than with another's"
        + (f" ({', '.join(worse)}); for {', '.join(rest)} the seeds do not decide." if worse and rest else ".")
    )
    return tuple(lines)


def sentence(one: Contrast) -> str:
    """A contrast of what was lost, in words."""
    scale, digits, unit = (100, 1, " points") if one.unit == "points" else (1, 3, " nats")
    own, other, more, low, high = (f"{scale * x:.{digits}f}" for x in (one.b, one.a, one.difference, one.low, one.high))
    rival = "another family's" if "another" in one.question else "random ones"
    what = "accuracy falls by" if one.unit == "points" else "loss on a worked solution grows by"
    return (
        f"With its own experts gone a family's {what} {own}{unit}, with {rival} by {other}: {more} more, {one.confidence:.0%} "
        f"interval {low} to {high}."
    )


def matrix_table(taken: Sequence[Value]) -> Table:
    """Accuracy lost, family by family, in points: means over seeds."""
    families = taken[0]["families"]
    whole = [
        mean(np.asarray(one["right"]["none"], float)[np.asarray(one["family"]) == f].mean() for one in taken)
        for f in families
    ]
    rows = [("nothing (accuracy, %)", *(f"{100 * x:.1f}" for x in whole))]
    for gone in families:
        cells = [100 * mean(lost(one, f, [gone], "right").mean() for one in taken) for f in families]
        rows.append((f"those of {gone}", *(f"{x:+.1f}" + (" *" if f == gone else "") for f, x in zip(families, cells))))
    cells = [100 * mean(lost(one, f, rivals(one, f)["random"], "right").mean() for one in taken) for f in families]
    rows.append((f"random ones ({RANDOM} draws)", *(f"{x:+.1f}" for x in cells)))
    return Table(
        title="Accuracy lost, in points, with experts gone",
        heads=("experts gone", *families),
        rows=tuple(rows),
        note=f"{GONE} of each layer's experts gone, those with the highest lift for a family on other problems. Made to think, greedy; "
        "means over seeds. *: the family's own.",
    )


def information_table(seeds: Sequence[int], said: Sequence[Value]) -> Table:
    """Every seed and layer."""
    rows = []
    for seed, one in zip(seeds, said, strict=True):
        for name, label in WITHIN.items():
            for number, layer in enumerate(one[name], start=1):
                cells = (f"{layer[key]:.4f}" for key in ("bits", "chance", "most"))
                rows.append((str(seed), label, str(number), *cells, f"{layer['p']:.3f}"))
    return Table(
        title="Mutual information of expert and family, bits",
        heads=("seed", "held fixed", "layer", "as it is", "shuffled, mean", "shuffled, most", "p"),
        rows=tuple(rows),
        note=f"{said[0]['tokens']:,} tokens of {said[0]['problems']:,} held-out worked solutions (first seed). Families are shuffled among "
        "problems, within a token id among the problems that have it.",
    )


def chosen_table(seeds: Sequence[int], taken: Sequence[Value]) -> Table:
    """Which experts were taken for a family, and their lift."""
    rows = []
    for seed, one in zip(seeds, taken, strict=True):
        for family in one["families"]:
            layers = zip(one["gone"][family], one["lift"][family])
            cells = ("; ".join(f"{e} ({x:.1f})" for e, x in zip(*layer)) for layer in layers)
            rows.append((str(seed), family, *cells))
    heads = (f"layer {i + 1}" for i in range(len(taken[0]["gone"][taken[0]["families"][0]])))
    return Table(
        title="A family's experts",
        heads=("seed", "family", *heads),
        rows=tuple(rows),
        note="Expert (lift: its share of the family's choices over its mean share in all families).",
    )


def information_chart(said: Sequence[Value]) -> Chart:
    """Bits as they are and shuffled, by layer and by what is held fixed."""
    cells = [(name, layer) for name in WITHIN for layer in range(len(said[0][name]))]
    short = {"any": "any", "token": "token", "pair": "pair"}
    series = []
    for key, label in (("bits", "as it is"), ("chance", "families shuffled")):
        lines = tuple(
            tuple((float(i), float(one[name][layer][key])) for i, (name, layer) in enumerate(cells)) for one in said
        )
        points = tuple((column[0][0], mean(y for _, y in column)) for column in zip(*lines))
        series.append(Series(label=label, points=points, by_seed=lines))
    return Chart(
        name="bits",
        title="What an expert says of the family",
        kind="bars",
        x="held fixed, layer",
        y="bits",
        labels=tuple(f"{short[name]}, {layer + 1}" for name, layer in cells),
        series=tuple(series),
        caption="Mutual information of the chosen expert and the problem's family: for any token, within one token id, and within one "
        "pair of token ids. What is above the second bars is more than chance. Dots: seeds.",
    )


def hurt_chart(hurt: Sequence[Contrast]) -> Chart:
    """Accuracy lost by family: own, others', random."""
    rows = [one for one in hurt if one.unit == "points"]
    labels_ = tuple(dict.fromkeys(one.of for one in rows))
    series = []
    for label, side in (("its own", 1), ("another family's", 0), ("random", 0)):
        chosen = [one for one in rows if ("random" in one.question) == (label == "random")]
        columns = [[pair[side] for pair in one.by_seed] for one in chosen]
        lines = tuple(tuple((float(i), y) for i, y in enumerate(ys)) for ys in zip(*columns))
        series.append(
            Series(label=label, points=tuple((float(i), mean(c)) for i, c in enumerate(columns)), by_seed=lines)
        )
    return Chart(
        name="ablation",
        title="Accuracy lost with experts gone",
        kind="bars",
        y="accuracy lost",
        labels=labels_,
        series=tuple(series),
        percent=True,
        caption=f"{GONE} of each layer's experts gone: the family's own, another family's (mean of them all), random ones (mean of "
        f"{RANDOM} draws). Dots: seeds.",
    )
