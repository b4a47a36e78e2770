"""Report `experts`: compare mutual information and lost accuracy, apply the verdict rule, and build tables and charts."""

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
"""Number of experts removed in each layer, equal to the number of experts per token."""
RANDOM = 6
"""Number of random sets of experts, each with `GONE` experts per layer."""
WITHIN = {"any": "over all tokens", "token": "within one token id", "pair": "within one token id and the one before it"}
P_VALUE = 0.01

Value = dict[str, Any]


def lost(ablation: Value, family: str, names: Iterable[str], what: str) -> np.ndarray:
    """Return the effect of the ablations `names` on each problem of `family`, averaged over these ablations.

    `what` selects lost accuracy ("right") or added loss in nats ("loss").
    """
    of_family = np.asarray([name == family for name in ablation["family"]])
    sign = 1 if what == "right" else -1
    intact = np.asarray(ablation[what]["none"], float)[of_family]
    return np.mean([sign * (intact - np.asarray(ablation[what][name], float)[of_family]) for name in names], axis=0)


def rivals(ablation: Value, family: str) -> dict[str, list[str]]:
    """Return the ablations to compare with the ablation of a family's own experts: a list of names for each kind."""
    return {
        "another family's": [name for name in ablation["families"] if name != family],
        "random": [name for name in ablation["gone"] if name not in ablation["families"]],
    }


def hurt_contrasts(ablations: Sequence[Value]) -> list[Contrast]:
    """Compare ablations: the effect of removing a family's own experts against the effect of removing another family's
    experts, or random experts.

    The lost accuracy is compared over all families together and by family. The added loss, in nats, is compared only over
    all families together.
    """
    families = ablations[0]["families"]
    result = []
    for what, unit in (("right", "points"), ("loss", "nats")):
        for rival in rivals(ablations[0], families[0]):
            of: dict[str, Sequence[str]] = {"all": families} | ({f: [f] for f in families} if what == "right" else {})
            for label, group in of.items():
                result.append(
                    contrast_of_values(
                        f"{'accuracy lost' if what == 'right' else 'loss added'}: {rival} experts gone, then its own",
                        [
                            np.concatenate(
                                [lost(ablation, f, rivals(ablation, f)[rival], what) for f in group]
                            ).tolist()
                            for ablation in ablations
                        ],
                        [
                            np.concatenate([lost(ablation, f, [f], what) for f in group]).tolist()
                            for ablation in ablations
                        ],
                        unit="points" if unit == "points" else "nats",
                        of=label,
                    )
                )
    return result


def ablation_verdicts(ablations: Sequence[Value], seeds: Sequence[int]) -> Verdicts:
    """Return the verdicts of all problems for each ablation, and for the model with all experts. Problems are ordered by
    family."""
    families = sorted(ablations[0]["families"])
    orders = [[i for f in families for i, own in enumerate(ablation["family"]) if own == f] for ablation in ablations]
    counts = [" | ".join(f"{f}: {ablation['family'].count(f)}" for f in families) for ablation in ablations]
    lines = {
        f"experts gone: {name}": tuple(
            "".join(str(ablation["right"][name][i]) for i in order)
            for ablation, order in zip(ablations, orders, strict=True)
        )
        for name in ablations[0]["right"]
    }
    return Verdicts(task=TASK, split="test", seeds=tuple(seeds), groups=tuple(counts), right=lines)


def information_contrasts(information: Sequence[Value]) -> Iterable[Contrast]:
    """Compare the mutual information, in bits, of shuffled and of true labels, by layer."""
    for name, label in WITHIN.items():
        for layer in range(len(information[0][name])):
            yield contrast_of_values(
                f"bits that expert and family share, {label}: families shuffled, then as they are",
                [[of_seed[name][layer]["chance"]] for of_seed in information],
                [[of_seed[name][layer]["bits"]] for of_seed in information],
                unit="bits",
                of=f"layer {layer + 1}",
            )


def decide(bits: Iterable[Contrast], hurt: Iterable[Contrast]) -> Verdict:
    """Return the verdict of the experiment. Every comparison follows the rule of `rorqual.evals.verdict`.

    The claim holds if the mutual information in every layer is higher for true labels than for shuffled labels, both
    over all tokens and among tokens with the same id. A further condition: removing a family's own experts costs more
    accuracy than removing another family's experts, and more than removing random experts.
    """
    pair = WITHIN["pair"]
    parts = [contrast for contrast in bits if pair not in contrast.question]
    parts += [contrast for contrast in hurt if contrast.of == "all" and contrast.unit == "points"]
    return together([contrast.sign for contrast in parts])


def words(information: Sequence[Value], hurt: Sequence[Contrast], ablations: Sequence[Value]) -> tuple[str, ...]:
    """Return the result of the experiment as sentences."""
    entropy = np.log2(len(ablations[0]["families"]))
    lines = []
    for name, label in WITHIN.items():
        layers = [layer for item in information for layer in item[name]]
        beyond = sum(layer["p"] <= P_VALUE for layer in layers)
        lines.append(
            f"{label.capitalize()}, the expert carries {mean(x['bits'] for x in layers):.3f} bits on the family (entropy {entropy:.2f}). "
            f"With shuffled families it is {mean(x['chance'] for x in layers):.3f}. The difference is significant (p at most {P_VALUE}) in "
            f"{beyond} of {len(layers)} layers and seeds."
        )
    lines += [sentence(item) for item in hurt if item.of == "all"]
    rows = [item for item in hurt if item.of != "all" and "another" in item.question]
    worse = [item.of for item in rows if item.sign == "holds"]
    undecided = [item.of for item in rows if item.sign != "holds"]
    lines.append(
        f"By family, {len(worse)} of {len(rows)} lose more accuracy without their own experts than without another family's"
        + (f" ({', '.join(worse)}). The result is open for {', '.join(undecided)}." if worse and undecided else ".")
    )
    return tuple(lines)


def sentence(contrast: Contrast) -> str:
    """Return a sentence that states the effects of the two ablations that a contrast compares."""
    scale, digits, unit = (100, 1, " points") if contrast.unit == "points" else (1, 3, " nats")
    own, rival_damage, more, low, high = (
        f"{scale * x:.{digits}f}" for x in (contrast.b, contrast.a, contrast.difference, contrast.low, contrast.high)
    )
    rival = "another family's" if "another" in contrast.question else "random ones"
    what = "accuracy falls by" if contrast.unit == "points" else "loss on a worked solution grows by"
    return (
        f"Without its own experts, a family's {what} {own}{unit}; without {rival}, by {rival_damage}. The difference is {more}, "
        f"{contrast.confidence:.0%} interval {low} to {high}."
    )


def matrix_table(ablations: Sequence[Value]) -> Table:
    """Return a table of lost accuracy, in points. It has one column per family and one row per set of removed experts,
    with means over seeds."""
    families = ablations[0]["families"]
    intact = [
        mean(
            np.asarray(ablation["right"]["none"], float)[np.asarray(ablation["family"]) == f].mean()
            for ablation in ablations
        )
        for f in families
    ]
    rows = [("none (accuracy, %)", *(f"{100 * x:.1f}" for x in intact))]
    for gone in families:
        cells = [100 * mean(lost(ablation, f, [gone], "right").mean() for ablation in ablations) for f in families]
        rows.append(
            (f"experts of {gone}", *(f"{x:+.1f}" + (" *" if f == gone else "") for f, x in zip(families, cells)))
        )
    cells = [
        100 * mean(lost(ablation, f, rivals(ablation, f)["random"], "right").mean() for ablation in ablations)
        for f in families
    ]
    rows.append((f"random ({RANDOM} draws)", *(f"{x:+.1f}" for x in cells)))
    return Table(
        title="Accuracy lost in points, by removed experts",
        heads=("removed experts", *families),
        rows=tuple(rows),
        note=f"In each layer, the {GONE} experts with the highest lift for a family on dev problems are removed. Made to think, greedy; "
        "means over seeds. *: the family's own experts.",
    )


def information_table(seeds: Sequence[int], information: Sequence[Value]) -> Table:
    """Return a table of mutual information with one row for each seed, condition and layer."""
    rows = []
    for seed, of_seed in zip(seeds, information, strict=True):
        for name, label in WITHIN.items():
            for number, layer in enumerate(of_seed[name], start=1):
                cells = (f"{layer[key]:.4f}" for key in ("bits", "chance", "most"))
                rows.append((str(seed), label, str(number), *cells, f"{layer['p']:.3f}"))
    return Table(
        title="Mutual information of expert and family, bits",
        heads=("seed", "condition", "layer", "true labels", "shuffled, mean", "shuffled, maximum", "p"),
        rows=tuple(rows),
        note=f"{information[0]['tokens']:,} tokens of {information[0]['problems']:,} held-out worked solutions (first seed). "
        "Families are shuffled among problems; for a fixed token id, among the problems that contain it.",
    )


def chosen_table(seeds: Sequence[int], ablations: Sequence[Value]) -> Table:
    """Return a table of each family's experts and their lift."""
    rows = []
    for seed, ablation in zip(seeds, ablations, strict=True):
        for family in ablation["families"]:
            layers = zip(ablation["gone"][family], ablation["lift"][family])
            cells = ("; ".join(f"{e} ({x:.1f})" for e, x in zip(*layer)) for layer in layers)
            rows.append((str(seed), family, *cells))
    heads = (f"layer {i + 1}" for i in range(len(ablations[0]["gone"][ablations[0]["families"][0]])))
    return Table(
        title="A family's experts",
        heads=("seed", "family", *heads),
        rows=tuple(rows),
        note="Expert (lift: its share of the family's choices over its mean share in all families).",
    )


def information_chart(information: Sequence[Value]) -> Chart:
    """Return a bar chart of the mutual information, in bits, for true and for shuffled labels, by condition and
    layer."""
    cells = [(name, layer) for name in WITHIN for layer in range(len(information[0][name]))]
    short = {"any": "any", "token": "token", "pair": "pair"}
    series = []
    for key, label in (("bits", "true families"), ("chance", "shuffled families")):
        lines = tuple(
            tuple((float(i), float(of_seed[name][layer][key])) for i, (name, layer) in enumerate(cells))
            for of_seed in information
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
    """Return a bar chart of each family's lost accuracy, for three ablations: its own experts, another family's
    experts, and random experts."""
    rows = [contrast for contrast in hurt if contrast.unit == "points"]
    labels_ = tuple(dict.fromkeys(contrast.of for contrast in rows))
    series = []
    for label, side in (("its own", 1), ("another family's", 0), ("random", 0)):
        chosen = [contrast for contrast in rows if ("random" in contrast.question) == (label == "random")]
        columns = [[pair[side] for pair in contrast.by_seed] for contrast in chosen]
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
