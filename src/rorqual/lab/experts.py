"""The experiment `experts`: do experts specialise? The experiment measures the mutual information of expert and family,
and ablates experts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rorqual.data.chat import ChatFormat
from rorqual.engine.engine import Engine
from rorqual.engine.request import SamplingParams
from rorqual.evals.compare import is_right
from rorqual.evals.evaluating import evaluate, pick
from rorqual.evals.evaluation import per_problem
from rorqual.evals.experts import choices, counts, dependence, lift, without_experts
from rorqual.lab.charts import Bars, Readings
from rorqual.lab.experiment import ArmPair, Experiment, Quantity, amount
from rorqual.lab.held_out import load_trained, mean_losses, solve
from rorqual.lab.job import Compute, ExperimentJob, value
from rorqual.lab.teacher import TEACHER, teacher_jobs
from rorqual.model.decoder import Decoder
from rorqual.recipes.quickstart import FULL, TASK, routed
from rorqual.tasks.find import load_task
from rorqual.tasks.task import Problem, Split

INFORMATION, ABLATION = "experts-information", "experts-ablation"
PROBLEMS = 40
"""Held-out problems per family and level. The experts of each family are selected on the same number of dev
problems."""
SHUFFLES, OPTIONS = 499, {"hard": 0.5}
GONE, RANDOM = 2, 6
"""Number of experts removed in each layer, equal to the number of experts per token, and number of random sets of as many experts."""
WITHIN = {"any": "over all tokens", "token": "within one token id", "pair": "within one token id and the one before it"}
LAYERS = ("layer 1", "layer 2")
OWN, ANOTHER, RANDOM_ONES = "its own", "another family's", "random"
ACCURACY, LOSS, BITS = "accuracy lost", "loss added", "bits that expert and family share"


class ExpertsExperiment(Experiment):
    """The experiment on the quickstart's teachers: mutual information of expert and family, and ablation of experts.

    The claim needs information beyond chance over all tokens and within one token id, in every layer.
    """

    name = "experts"
    title = "Experts specialise"
    claim = (
        "experts specialise by subject: the expert of a token carries information on the family of its problem, also for a fixed token "
        "id. A family loses more accuracy without its own experts than without another family's or random ones"
    )
    source = "DeepSeekMoE, 2401.06066, section 4.5; DeepSeek-V3, section 4.5.3 and appendix C"
    arms = {"chance": "families shuffled", "bits": "true families"}
    quantities = {
        ACCURACY: Quantity("points"),
        LOSS: Quantity("nats"),
        **{f"{BITS}, {label}": Quantity("bits") for label in WITHIN.values()},
    }
    pairs = (
        *(ArmPair(question=f"{quantity}: {rival} experts gone, then its own", quantity=quantity, a=rival, b=OWN,
               groups=groups, claimed=("all",) if quantity == ACCURACY else ())
          for quantity, groups in ((ACCURACY, ()), (LOSS, ("all",))) for rival in (ANOTHER, RANDOM_ONES)),
        *(ArmPair(question=f"{BITS}, {label}: families shuffled, then as they are", quantity=f"{BITS}, {label}", a="chance", b="bits",
               claimed=LAYERS if name != "pair" else ())
          for name, label in WITHIN.items()),
    )  # fmt: skip
    charts = (Bars(ACCURACY, shares=False), *(Bars(f"{BITS}, {label}", shares=False) for label in WITHIN.values()))
    note = (
        f"In each layer, the {GONE} experts with the highest lift for a family on dev problems are removed. Made to think, greedy. "
        f"Another family's: mean over all; random: mean over {RANDOM} draws."
    )

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        count, shuffles = amount(PROBLEMS, share), amount(SHUFFLES, share, 99)
        return [
            *teacher_jobs(seed, place, share),
            Compute(name=INFORMATION, estimate=4 * share, needs=(TEACHER,),
                    function=partial(informed, seed=seed, count=count, shuffles=shuffles)),
            Compute(name=ABLATION, estimate=48 * share, needs=(TEACHER,), function=partial(ablated, seed=seed, count=count)),
        ]  # fmt: skip

    def read(self, place: Path) -> Readings:
        information, ablation = value(place, INFORMATION), value(place, ABLATION)
        bits = {
            f"{BITS}, {label}": {
                arm: {f"layer {layer}": {0: one[arm]} for layer, one in enumerate(information[name], 1)}
                for arm in self.arms
            }
            for name, label in WITHIN.items()
        }
        return {ACCURACY: damage(ablation, "right", 1), LOSS: damage(ablation, "loss", -1), **bits}


def damage(ablation: dict[str, Any], what: str, sign: int) -> dict[str, dict[str, dict[int, float]]]:
    """Return what each problem of a family loses without the family's own experts, another family's (mean over all), and random ones
    (mean over the draws)."""
    families, family = ablation["families"], np.asarray(ablation["family"])
    lost = {
        name: sign * (np.asarray(ablation[what]["none"], float) - np.asarray(values, float))
        for name, values in ablation[what].items()
    }
    drawn = [name for name in ablation["gone"] if name not in families]
    found: dict[str, dict[str, dict[int, float]]] = {}
    for kind in (OWN, ANOTHER, RANDOM_ONES):
        groups: dict[str, dict[int, float]] = {"all": {}}
        for own in families:
            names = {OWN: [own], ANOTHER: [name for name in families if name != own], RANDOM_ONES: drawn}[kind]
            mean = np.mean([lost[name] for name in names], axis=0)
            groups[own] = {int(item): float(mean[item]) for item in np.flatnonzero(family == own)}
            groups["all"] |= groups[own]
        found[kind] = groups
    return found


def informed(place: Path, *, seed: int, count: int, shuffles: int) -> dict[str, Any]:
    """Measure the mutual information of expert and family on held-out worked solutions.

    For each condition of `WITHIN` and each layer, the result has the mutual information in bits, its mean and maximum
    with shuffled labels, and the p-value.
    """
    model, chat = load_trained(place / TEACHER)
    problems = picked("test", seed, count)
    read = choices(model, solve(problems, chat), FULL.row)
    label, _ = labels(problems)
    pair = read.token * (int(read.token.max()) + 2) + read.before + 1
    conditions = {"any": np.zeros_like(read.token), "token": read.token, "pair": pair}
    result: dict[str, Any] = {"tokens": len(read.token), "problems": len(problems)}
    for name in WITHIN:
        layers = []
        for layer in range(read.experts.shape[1]):
            measured = dependence(read.experts[:, layer], read.document, label, conditions[name], n_experts=routed(model.config),
                             shuffles=shuffles, seed=seed)  # fmt: skip
            layers.append({"bits": measured.bits, "chance": float(measured.shuffled.mean()), "most": float(measured.shuffled.max()),
                           "p": measured.p_value})  # fmt: skip
        result[name] = layers
    return result


def ablated(place: Path, *, seed: int, count: int) -> dict[str, Any]:
    """Remove one set of experts at a time. Measure on each problem whether the greedy answer is correct, and the loss
    of the worked solution. The model is made to think.

    In each layer, the experts of a family are the `GONE` experts with the highest lift on dev problems.
    """
    model, chat = load_trained(place / TEACHER)
    dev_problems = picked("dev", seed, count)
    read = choices(model, solve(dev_problems, chat), FULL.row)
    label, families = labels(dev_problems)
    lifts = [
        lift(counts(read.experts[:, layer], label[read.document], routed(model.config), len(families)))
        for layer in range(read.experts.shape[1])
    ]
    sets = {
        family: [np.argsort(-layer_lift[row])[:GONE].tolist() for layer_lift in lifts]
        for row, family in enumerate(families)
    }
    rng = np.random.default_rng(seed)
    for number in range(RANDOM):
        sets[f"random {number + 1}"] = [
            rng.choice(layer_lift.shape[1], GONE, replace=False).tolist() for layer_lift in lifts
        ]
    problems = picked("test", seed, count)
    samples = solve(problems, chat)
    result: dict[str, Any] = {
        "families": families,
        "family": [problem.family for problem in problems],
        "gone": sets,
        "lift": {f: [[float(layer_lift[row, e]) for e in sets[f][i]] for i, layer_lift in enumerate(lifts)] for row, f in enumerate(families)},
        "right": {"none": answered(model, chat, problems, seed, count)},
        "loss": {"none": mean_losses(model, samples)},
    }  # fmt: skip
    for name, gone in sets.items():
        without = without_experts(model, gone)
        result["right"][name] = answered(without, chat, problems, seed, count)
        result["loss"][name] = mean_losses(without, samples)
    return result


def picked(split: Split, seed: int, count: int) -> list[Problem]:
    """Return `count` problems of each family and level."""
    return pick(load_task(TASK, options=OPTIONS), split, count, seed, True)


def labels(problems: Sequence[Problem]) -> tuple[np.ndarray, list[str]]:
    """Return the family index of each problem, and the list of families."""
    families = list(dict.fromkeys(problem.family for problem in problems))
    return np.asarray([families.index(problem.family) for problem in problems]), families


def answered(model: Decoder, chat: ChatFormat, problems: Sequence[Problem], seed: int, count: int) -> list[int]:
    """Return 1 for each problem that is answered correctly, else 0. The model is made to think and decodes greedily."""
    result = evaluate(
        Engine.of(model, chat.tokenizer, chat, threads=1),
        load_task(TASK, options=OPTIONS),
        split="test",
        count=count,
        seed=seed,
        thinking="on",
        params=SamplingParams(max_tokens=FULL.max_tokens),
        per_family=True,
        problems=problems,
    )
    right = per_problem(result.samples, is_right)
    return [int(right[problem.key]) for problem in problems]
