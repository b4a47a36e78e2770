"""The results of `experts`: mutual information, accuracy lost per family, the rule of the verdict, tables and charts."""

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
"""Experts removed in each layer: as many as serve a token."""
RANDOM = 6
"""Number of random sets of as many experts."""
WITHIN = {"any": "over all tokens", "token": "within one token id", "pair": "within one token id and the one before it"}
P_VALUE = 0.01

Value = dict[str, Any]


def lost(one: Value, family: str, names: Iterable[str], what: str) -> np.ndarray:
    """Return the loss of each problem of `family`, averaged over the ablations `names`: "right" (accuracy) or "loss" (nats)."""
    mine = np.asarray([name == family for name in one["family"]])
    sign = 1 if what == "right" else -1
    whole = np.asarray(one[what]["none"], float)[mine]
    return np.mean([sign * (whole - np.asarray(one[what][name], float)[mine]) for name in names], axis=0)


def rivals(one: Value, family: str) -> dict[str, list[str]]:
    """Return the names of the ablations that a family's own is compared with."""
    return {
        "another family's": [name for name in one["families"] if name != family],
        "random": [name for name in one["gone"] if name not in one["families"]],
    }


def hurt_contrasts(taken: Sequence[Value]) -> list[Contrast]:
    """Contrast what families lose without other or random experts with what they lose without their own.

    Accuracy is contrasted pooled and by family, loss in nats pooled only.
    """
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
    """Return every problem's verdict with all experts and without each set; problems by family, in drawing order."""
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
    """Contrast the bits of shuffled labels with those of the true labels, by layer."""
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
    """Return the verdict, with every comparison by the rule of `rorqual.evals.verdict`.

    It holds if every layer has more bits than shuffled labels, also for a fixed token id. In addition, a family must
    lose more accuracy without its own experts than without another family's, and than without random ones.
    """
    pair = WITHIN["pair"]
    parts = [one for one in bits if pair not in one.question]
    parts += [one for one in hurt if one.of == "all" and one.unit == "points"]
    return together([one.sign for one in parts])


def words(said: Sequence[Value], hurt: Sequence[Contrast], taken: Sequence[Value]) -> tuple[str, ...]:
    """Return the result in sentences."""
    entropy = np.log2(len(taken[0]["families"]))
    lines = []
    for name, label in WITHIN.items():
        layers = [layer for one in said for layer in one[name]]
        beyond = sum(layer["p"] <= P_VALUE for layer in layers)
        lines.append(
            f"{label.capitalize()}, the expert carries {mean(x['bits'] for x in layers):.3f} bits on the family (entropy {entropy:.2f}). "
            f"With shuffled families it is {mean(x['chance'] for x in layers):.3f}. The difference is significant (p at most {P_VALUE}) in "
            f"{beyond} of {len(layers)} layers and seeds."
        )
    lines += [sentence(one) for one in hurt if one.of == "all"]
    rows = [one for one in hurt if one.of != "all" and "another" in one.question]
    worse = [one.of for one in rows if one.sign == "holds"]
    rest = [one.of for one in rows if one.sign != "holds"]
    lines.append(
        f"By family, {len(worse)} of {len(rows)} lose more accuracy without their own experts than without another family's"
        + (f" ({', '.join(worse)}). The result is open for {', '.join(rest)}." if worse and rest else ".")
    )
    return tuple(lines)


def sentence(one: Contrast) -> str:
    """Return a contrast of losses in words."""
    scale, digits, unit = (100, 1, " points") if one.unit == "points" else (1, 3, " nats")
    own, other, more, low, high = (f"{scale * x:.{digits}f}" for x in (one.b, one.a, one.difference, one.low, one.high))
    rival = "another family's" if "another" in one.question else "random ones"
    what = "accuracy falls by" if one.unit == "points" else "loss on a worked solution grows by"
    return (
        f"Without its own experts, a family's {what} {own}{unit}; without {rival}, by {other}. The difference is {more}, "
        f"{one.confidence:.0%} interval {low} to {high}."
    )


def matrix_table(taken: Sequence[Value]) -> Table:
    """Return the accuracy lost by family and removed experts, in points, as means over seeds."""
    families = taken[0]["families"]
    whole = [
        mean(np.asarray(one["right"]["none"], float)[np.asarray(one["family"]) == f].mean() for one in taken)
        for f in families
    ]
    rows = [("none (accuracy, %)", *(f"{100 * x:.1f}" for x in whole))]
    for gone in families:
        cells = [100 * mean(lost(one, f, [gone], "right").mean() for one in taken) for f in families]
        rows.append(
            (f"experts of {gone}", *(f"{x:+.1f}" + (" *" if f == gone else "") for f, x in zip(families, cells)))
        )
    cells = [100 * mean(lost(one, f, rivals(one, f)["random"], "right").mean() for one in taken) for f in families]
    rows.append((f"random ({RANDOM} draws)", *(f"{x:+.1f}" for x in cells)))
    return Table(
        title="Accuracy lost in points, by removed experts",
        heads=("removed experts", *families),
        rows=tuple(rows),
        note=f"In each layer, the {GONE} experts with the highest lift for a family on dev problems are removed. Made to think, greedy; "
        "means over seeds. *: the family's own experts.",
    )


def information_table(seeds: Sequence[int], said: Sequence[Value]) -> Table:
    """Return one row for each seed, condition and layer."""
    rows = []
    for seed, one in zip(seeds, said, strict=True):
        for name, label in WITHIN.items():
            for number, layer in enumerate(one[name], start=1):
                cells = (f"{layer[key]:.4f}" for key in ("bits", "chance", "most"))
                rows.append((str(seed), label, str(number), *cells, f"{layer['p']:.3f}"))
    return Table(
        title="Mutual information of expert and family, bits",
        heads=("seed", "condition", "layer", "true labels", "shuffled, mean", "shuffled, maximum", "p"),
        rows=tuple(rows),
        note=f"{said[0]['tokens']:,} tokens of {said[0]['problems']:,} held-out worked solutions (first seed). Families are shuffled among "
        "problems; for a fixed token id, among the problems that contain it.",
    )


def chosen_table(seeds: Sequence[int], taken: Sequence[Value]) -> Table:
    """Return each family's experts and their lift."""
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
    """Return the bits of true and shuffled labels, by condition and layer."""
    cells = [(name, layer) for name in WITHIN for layer in range(len(said[0][name]))]
    short = {"any": "any", "token": "token", "pair": "pair"}
    series = []
    for key, label in (("bits", "true families"), ("chance", "shuffled families")):
        lines = tuple(
            tuple((float(i), float(one[name][layer][key])) for i, (name, layer) in enumerate(cells)) for one in said
        )
        points = tuple((column[0][0], mean(y for _, y in column)) for column in zip(*lines))
        series.append(Series(label=label, points=points, by_seed=lines))
    return Chart(
        name="bits",
        title="Information of an expert on the family",
        kind="bars",
        x="condition, layer",
        y="bits",
        labels=tuple(f"{short[name]}, {layer + 1}" for name, layer in cells),
        series=tuple(series),
        caption="Mutual information of the chosen expert and the problem's family: over all tokens, for a fixed token id, and for a fixed "
        "pair of token ids. Only the excess over the second bars is more than chance. Dots: seeds.",
    )


def hurt_chart(hurt: Sequence[Contrast]) -> Chart:
    """Return the accuracy lost by family without its own, another family's and random experts."""
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
        title="Accuracy lost without some experts",
        kind="bars",
        y="accuracy lost",
        labels=labels_,
        series=tuple(series),
        percent=True,
        caption=f"{GONE} experts of each layer are removed: the family's own, another family's (mean over all), random (mean over "
        f"{RANDOM} draws). Dots: seeds.",
    )
