"""Do experts specialise? What an expert says of a family beyond chance and beyond the token, and who suffers where it is taken away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from rorqual.core.records import RunDir
from rorqual.data.chat import ChatFormat, chat_format
from rorqual.data.pack import Sample, lay_out
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.engine import Engine
from rorqual.engine.request import SamplingParams
from rorqual.evals.compare import is_right
from rorqual.evals.evaluation import per_problem
from rorqual.evals.experts import choices, counts, dependence, lift, without_experts
from rorqual.evals.run import evaluate, pick
from rorqual.lab.experiment import Experiment, amount
from rorqual.lab.finding import Chart, Contrast, Finding, Series, Table, Verdict, contrast_of_values
from rorqual.lab.job import Compute, Job, value
from rorqual.lab.teacher import TEACHER, teacher_jobs
from rorqual.model.decoder import Decoder
from rorqual.model.load.run import load_run
from rorqual.ops.losses import token_logprobs
from rorqual.recipes.quickstart import FULL, TASK, routed
from rorqual.tasks.base import Problem, Split
from rorqual.tasks.find import load_task
from rorqual.train.batch import TrainBatch
from rorqual.train.sources.worked import worked_sample

INFORMATION, ABLATION = "experts-information", "experts-ablation"
PROBLEMS = 40
"""Of each family and level: held-out ones to measure on, and as many others, of the dev split, to choose a family's experts by."""
SHUFFLES = 499
GONE = 2
"""Experts taken away in each layer: as many as serve a token."""
RANDOM = 6
"""Draws of as many random experts."""
WITHIN = {"any": "any token", "token": "within one token id", "pair": "within one token id and the one before it"}
P_VALUE = 0.01

Value = dict[str, Any]


class ExpertsExperiment(Experiment):
    """Mutual information of expert and family, and ablation, on the quickstart's teachers."""

    name = "experts"
    title = "Experts specialise"
    claim = (
        "experts divide the work by subject: which expert serves a token says of which family its problem is, also within one token "
        "id, and a family loses more where its own experts are taken away than where another's or random ones are"
    )
    source = "DeepSeekMoE, 2401.06066, section 4.5; DeepSeek-V3, section 4.5.3 and appendix C"
    seeds = 5

    def jobs(self, seed: int, place: Path, share: float) -> list[Job]:
        count, shuffles = amount(PROBLEMS, share), amount(SHUFFLES, share, 99)
        return [
            *teacher_jobs(seed, place, share),
            Compute(name=INFORMATION, estimate=12 * share, needs=(TEACHER,),
                    function=partial(informed, seed=seed, count=count, shuffles=shuffles)),
            Compute(name=ABLATION, estimate=60 * share, needs=(TEACHER,), function=partial(ablated, seed=seed, count=count)),
        ]  # fmt: skip

    def conclude(self, places: Mapping[int, Path], share: float) -> Finding:
        said = [value(place, INFORMATION) for place in places.values()]
        taken = [value(place, ABLATION) for place in places.values()]
        bits = list(information_contrasts(said))
        hurt = hurt_contrasts(taken)
        return Finding(
            experiment=self.name,
            title=self.title,
            claim=self.claim,
            source=self.source,
            verdict=decide(said, hurt),
            words=words(said, hurt, taken),
            contrasts=(*hurt, *bits),
            tables=(matrix_table(taken), information_table(list(places), said), chosen_table(list(places), taken)),
            charts=(information_chart(said), hurt_chart(hurt)),
            seeds=tuple(places),
            share=share,
        )


# ---- jobs


def informed(place: Path, *, seed: int, count: int, shuffles: int) -> Value:
    """For each `within` and layer: bits, mean and highest bits of shuffled labels, and the p-value; over worked solutions held out."""
    model, chat = teacher(place)
    problems, samples = worked(chat, "test", seed, count)
    read = choices(model, samples, FULL.row)
    label, _ = labels(problems)
    pair = read.token * (int(read.token.max()) + 2) + read.before + 1
    held = {"any": np.zeros_like(read.token), "token": read.token, "pair": pair}
    found: Value = {"tokens": len(read.token), "problems": len(problems)}
    for name in WITHIN:
        layers = []
        for layer in range(read.experts.shape[1]):
            one = dependence(read.experts[:, layer], read.document, label, held[name], n_experts=routed(model.config),
                             shuffles=shuffles, seed=seed)  # fmt: skip
            layers.append({"bits": one.bits, "chance": float(one.shuffled.mean()), "most": float(one.shuffled.max()),
                           "p": one.p_value})  # fmt: skip
        found[name] = layers
    return found


def ablated(place: Path, *, seed: int, count: int) -> Value:
    """Accuracy, made to think and greedy, and loss of the worked solution, problem by problem, with each set of experts gone.

    A family's experts are the `GONE` of each layer with the highest lift on other problems, those of the dev split.
    """
    model, chat = teacher(place)
    others, known = worked(chat, "dev", seed, count)
    read = choices(model, known, FULL.row)
    label, families = labels(others)
    lifts = [
        lift(counts(read.experts[:, layer], label[read.document], routed(model.config), len(families)))
        for layer in range(read.experts.shape[1])
    ]
    sets = {family: [np.argsort(-one[row])[:GONE].tolist() for one in lifts] for row, family in enumerate(families)}
    rng = np.random.default_rng(seed)
    for number in range(RANDOM):
        sets[f"random {number + 1}"] = [rng.choice(one.shape[1], GONE, replace=False).tolist() for one in lifts]
    problems, samples = worked(chat, "test", seed, count)
    found: Value = {
        "families": families,
        "family": [problem.family for problem in problems],
        "gone": sets,
        "lift": {f: [[float(one[row, e]) for e in sets[f][i]] for i, one in enumerate(lifts)] for row, f in enumerate(families)},
        "right": {"none": answered(model, chat, problems, seed, count)},
        "loss": {"none": losses(model, samples)},
    }  # fmt: skip
    for name, gone in sets.items():
        without = without_experts(model, gone)
        found["right"][name] = answered(without, chat, problems, seed, count)
        found["loss"][name] = losses(without, samples)
    return found


def teacher(place: Path) -> tuple[Decoder, ChatFormat]:
    """The seed's teacher and its chat format."""
    run = RunDir(place / TEACHER)
    return load_run(run), chat_format(Tokenizer.load(run.tokenizer_file))


def worked(chat: ChatFormat, split: Split, seed: int, count: int) -> tuple[list[Problem], list[Sample]]:
    """`count` problems of each family and level with their worked solutions."""
    problems = pick(load_task(TASK, options={"hard": 0.5}), split, count, seed, True)
    return problems, [worked_sample(problem, chat, think=True) for problem in problems]


def labels(problems: Sequence[Problem]) -> tuple[np.ndarray, list[str]]:
    """Each problem's family as a number, and the families."""
    families = list(dict.fromkeys(problem.family for problem in problems))
    return np.asarray([families.index(problem.family) for problem in problems]), families


def answered(model: Decoder, chat: ChatFormat, problems: Sequence[Problem], seed: int, count: int) -> list[int]:
    """1 for each problem answered rightly, made to think, greedily."""
    found = evaluate(
        Engine(model, chat.tokenizer, chat, threads=1),
        load_task(TASK, options={"hard": 0.5}),
        split="test",
        count=count,
        seed=seed,
        thinking="on",
        params=SamplingParams(max_tokens=FULL.max_tokens),
        per_family=True,
        problems=problems,
    )
    right = per_problem(found.samples, is_right)
    return [int(right[problem.key]) for problem in problems]


@torch.no_grad()
def losses(model: Decoder, samples: Sequence[Sample]) -> list[float]:
    """Nats a trained token of each sample."""
    found = []
    for start in range(0, len(samples), 64):
        part = samples[start : start + 64]
        batch = TrainBatch.from_packed(lay_out(part, [[i] for i in range(len(part))], FULL.row).batch)
        hidden = model(batch.tokens, batch.positions, segments=batch.segments).hidden
        logprobs = token_logprobs(model.logits(hidden).flatten(0, 1), batch.targets.flatten()).view_as(batch.loss_mask)
        found += (-(logprobs * batch.loss_mask).sum(1) / batch.loss_mask.sum(1)).tolist()
    return found


# ---- conclusions


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


def decide(said: Sequence[Value], hurt: Sequence[Contrast]) -> Verdict:
    """Holds: in every seed and layer more bits than shuffled labels give, also within one token id (p at most 0.01), and a family loses
    more accuracy with its own experts gone than with another's, and than with random ones (99 % intervals above 0).

    Does not hold: in most seeds and layers the bits are no more than chance, or it loses less beyond doubt. Else open.
    """
    beyond = [layer["p"] <= P_VALUE for one in said for name in ("any", "token") for layer in one[name]]
    signs = [one.sign for one in hurt if one.of == "all" and one.unit == "points"]
    if sum(beyond) < len(beyond) / 2 or "does not hold" in signs:
        return "does not hold"
    return "holds" if all(beyond) and all(sign == "holds" for sign in signs) else "open"


def words(said: Sequence[Value], hurt: Sequence[Contrast], taken: Sequence[Value]) -> tuple[str, ...]:
    """What came out, in sentences."""
    entropy = np.log2(len(taken[0]["families"]))
    lines = []
    for name, label in WITHIN.items():
        layers = [layer for one in said for layer in one[name]]
        least = sum(layer["p"] <= P_VALUE for layer in layers)
        lines.append(
            f"For {label}, the expert says {mean(x['bits'] for x in layers):.4f} bits of the family (of {entropy:.2f}); shuffled families give "
            f"{mean(x['chance'] for x in layers):.4f}. More than chance, p at most {P_VALUE}, in {least} of {len(layers)} layers and seeds."
        )
    for one in hurt:
        if one.of == "all":
            lines.append(sentence(one))
    worse = [one.of for one in hurt if one.of != "all" and one.sign == "holds" and "another" in one.question]
    lines.append(
        f"Taken alone, {len(worse)} of {len(taken[0]['families'])} families lose more with their own experts gone than with another's: "
        f"{', '.join(worse) or 'none'}."
    )
    return tuple(lines)


def sentence(one: Contrast) -> str:
    """A contrast of losses, in words."""
    scale, unit = (100, "points of accuracy") if one.unit == "points" else (1, "nats a token")
    rival = "other families'" if "another" in one.question else "random"
    digits = 1 if one.unit == "points" else 3
    own, other, more, low, high = (f"{scale * x:.{digits}f}" for x in (one.b, one.a, one.difference, one.low, one.high))
    return (
        f"With its own experts gone a family loses {own} {unit}, with {rival} ones {other}: {more} more, {one.confidence:.0%} interval {low} "
        f"to {high}."
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
