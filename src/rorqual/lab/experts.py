"""The experiment `experts`: do experts specialise? The experiment measures the mutual information of expert and family,
and ablates experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rorqual.data.chat import ChatFormat
from rorqual.data.pack import PADDING, Ints, TrainingSample
from rorqual.engine.engine import Engine
from rorqual.engine.request import SamplingParams
from rorqual.evals.compare import is_right
from rorqual.evals.evaluating import evaluate, pick_problems
from rorqual.evals.evaluation import mean_per_problem
from rorqual.evals.experts import count_expert_use, expert_label_information, lift, without_experts
from rorqual.lab.experiment import ArmPair, Experiment, Quantity, Readings, scale_amount
from rorqual.lab.held_out import load_trained, run_on_sample_blocks, solution_samples
from rorqual.lab.job import ComputeJob, ExperimentJob, load_value
from rorqual.lab.teacher import TEACHER, teacher_jobs
from rorqual.model.decoder import Decoder
from rorqual.recipes.quickstart import FULL, TASK
from rorqual.tasks.find import load_task
from rorqual.tasks.task import Problem, Split

INFORMATION, ABLATION = "experts-information", "experts-ablation"
PROBLEMS = 40
"""Number of held-out problems per family and level. The experts of each family are selected on the same number of dev
problems."""
SHUFFLES, OPTIONS = 499, {"hard": 0.5}
GONE, RANDOM = 2, 6
"""`GONE` is the number of experts that are removed in each layer. `GONE` equals the number of experts per token. `RANDOM`
is the number of random sets of `GONE` experts per layer."""
WITHIN = {"any": "over all tokens", "token": "within one token id"}
LAYERS = ("layer 1", "layer 2")
OWN, ANOTHER, RANDOM_ONES, EQUAL_LOAD = "its own", "another family's", "random", "equal load"
ACCURACY, BITS = "accuracy lost", "bits that expert and family share"
LOAD, LOAD_TOLERANCE = "loads", 0.1
"""The share of a family's tokens that the removed experts process, and the largest relative difference of the load between a
family's own experts and the control of equal load."""


class ExpertsExperiment(Experiment):
    """The experiment on the quickstart's teachers: mutual information of expert and family, and ablation of experts.

    The claim holds only if the mutual information in every layer is higher than with shuffled families, both over all tokens
    and within one token id.
    """

    name = "experts"
    title = "Experts specialise"
    claim = (
        "experts specialise by subject: the expert of a token carries information on the family of its problem, also for a fixed token "
        "id. On average over families, a family loses more accuracy without its own experts than without another family's, random ones "
        "or others of equal load"
    )
    source = "DeepSeekMoE, 2401.06066, section 4.5; DeepSeek-V3, section 4.5.3 and appendix C"
    arms = {"chance": "families shuffled", "bits": "true families"}
    quantities = {
        ACCURACY: Quantity("points"),
        LOAD: Quantity("ratio"),
        **{f"{BITS}, {label}": Quantity("bits") for label in WITHIN.values()},
    }
    pairs = (
        *(ArmPair(question=f"{ACCURACY}: {rival} experts gone, then its own", quantity=ACCURACY, a=rival, b=OWN, claimed=("all",))
          for rival in (ANOTHER, RANDOM_ONES)),
        ArmPair(question=f"{ACCURACY}: others of equal load gone, then its own", quantity=ACCURACY, a=EQUAL_LOAD, b=OWN,
             claimed=("all",), equal={LOAD: LOAD_TOLERANCE}),
        *(ArmPair(question=f"{BITS}, {label}: families shuffled, then as they are", quantity=f"{BITS}, {label}", a="chance", b="bits",
               claimed=LAYERS)
          for label in WITHIN.values()),
    )  # fmt: skip
    wording = {
        ACCURACY: "the accuracy lost on average over families",
        OWN: "without a family's own experts",
        ANOTHER: "without another family's",
        RANDOM_ONES: "without random ones",
        EQUAL_LOAD: "without others",
        **{f"{BITS}, {label}": f"the mutual information of expert and family {label}" for label in WITHIN.values()},
        "chance": "with shuffled families",
        "bits": "with the true families",
        **{layer: f"in {layer}" for layer in LAYERS},
    }
    note = (
        f"In each layer, the {GONE} experts with the highest lift for a family on dev problems are removed. Made to think, greedy. "
        f"Another family's: mean over all; random: mean over {RANDOM} draws; equal load: {GONE} to {2 * GONE} other experts that process as "
        "large a share of the family's tokens."
    )

    def runs_of(self, arm: str) -> tuple[str, ...]:
        return (TEACHER,)

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        count, shuffles = scale_amount(PROBLEMS, share), scale_amount(SHUFFLES, share, 99)
        return [
            *teacher_jobs(seed, place, share),
            ComputeJob(name=INFORMATION, estimate=4 * share, needs=(TEACHER,),
                    function=partial(measure_mutual_information, seed=seed, count=count, shuffles=shuffles)),
            ComputeJob(name=ABLATION, estimate=70 * share, needs=(TEACHER,), function=partial(ablate_experts, seed=seed, count=count)),
        ]  # fmt: skip

    def read(self, place: Path) -> Readings:
        information, ablation = load_value(place, INFORMATION), load_value(place, ABLATION)
        bits = {
            f"{BITS}, {label}": {
                arm: {f"layer {layer}": {0: one[arm]} for layer, one in enumerate(information[name], 1)}
                for arm in self.arms
            }
            for name, label in WITHIN.items()
        }
        return {ACCURACY: accuracy_losses(ablation), LOAD: removed_loads(ablation), **bits}


def accuracy_losses(ablation: dict[str, Any]) -> dict[str, dict[str, dict[int, float]]]:
    """Return the accuracy that each problem loses if experts are removed: the experts of the problem's family, the experts of
    another family (mean over the other families), or random experts (mean over the random sets)."""
    families, family = ablation["families"], np.asarray(ablation["family"])
    lost = {
        name: np.asarray(ablation["right"]["none"], float) - np.asarray(values, float)
        for name, values in ablation["right"].items()
    }
    drawn = [name for name in ablation["gone"] if name.startswith("random ")]
    found: dict[str, dict[str, dict[int, float]]] = {}
    for kind in (OWN, ANOTHER, RANDOM_ONES, EQUAL_LOAD):
        groups: dict[str, dict[int, float]] = {"all": {}}
        for own in families:
            rivals = [name for name in families if name != own]
            names = {OWN: [own], ANOTHER: rivals, RANDOM_ONES: drawn, EQUAL_LOAD: [equal_load_name(own)]}[kind]
            mean = np.mean([lost[name] for name in names], axis=0)
            groups[own] = {int(item): float(mean[item]) for item in np.flatnonzero(family == own)}
            groups["all"] |= groups[own]
        found[kind] = groups
    return found


@dataclass(frozen=True)
class RouterChoices:
    """The router's choices, one row for each of n tokens.

    `document` [n] is the index of the token's document, and `token` [n] is the token id. `experts` [n, MoE layers, k] are the experts
    that process the token.
    """

    document: Ints
    token: Ints
    experts: Ints


def read_choices(model: Decoder, samples: Sequence[TrainingSample]) -> RouterChoices:
    """Return the router's choices in a forward pass of `model` over `samples`. Padding tokens are excluded."""
    parts, first = [], 0
    for block in run_on_sample_blocks(model, samples):
        read = block.batch.segments != PADDING
        chosen = torch.stack([layer.indices for layer in block.output.routing], dim=1)  # [tokens, layers, k]
        parts.append((read.nonzero()[:, 0] + first, block.batch.tokens[read], chosen[read.flatten()]))
        first += len(read)
    return RouterChoices(*(torch.cat(part).numpy() for part in zip(*parts, strict=True)))


def measure_mutual_information(place: Path, *, seed: int, count: int, shuffles: int) -> dict[str, Any]:
    """Measure the mutual information of expert and family on held-out worked solutions.

    For each condition in `WITHIN` and each layer, return the mutual information in bits, and the mean mutual information with
    shuffled labels.
    """
    model, chat = load_trained(place / TEACHER)
    problems = pick_of_each_family("test", seed, count)
    read = read_choices(model, solution_samples(problems, chat))
    label, _ = family_labels(problems)
    conditions = {"any": np.zeros_like(read.token), "token": read.token}
    result: dict[str, Any] = {"tokens": len(read.token), "problems": len(problems)}
    for name in WITHIN:
        measured = [
            expert_label_information(
                chosen,
                read.document,
                label,
                conditions[name],
                n_experts=max_routed_expert_count(model),
                shuffles=shuffles,
                seed=seed,
            )
            for chosen in np.moveaxis(read.experts, 1, 0)
        ]
        result[name] = [{"bits": bits, "chance": chance} for bits, chance in measured]
    return result


def ablate_experts(place: Path, *, seed: int, count: int) -> dict[str, Any]:
    """Remove one set of experts at a time, and measure on each problem whether the greedy answer is correct. The model is
    forced to think.

    In each layer, the experts of a family are the `GONE` experts with the highest lift on dev problems. `load[family]` has the load
    of the family's own experts, and of the control of equal load (`experts_of_equal_load`).
    """
    model, chat = load_trained(place / TEACHER)
    dev_problems = pick_of_each_family("dev", seed, count)
    read = read_choices(model, solution_samples(dev_problems, chat))
    label, families = family_labels(dev_problems)
    use = [
        count_expert_use(chosen, label[read.document], max_routed_expert_count(model), len(families))
        for chosen in np.moveaxis(read.experts, 1, 0)
    ]
    lifts = [lift(counts) for counts in use]
    sets = {
        family: [np.argsort(-layer_lift[row])[:GONE].tolist() for layer_lift in lifts]
        for row, family in enumerate(families)
    }
    loads = {}
    for row, family in enumerate(families):
        shares = [counts[row] / counts[row].sum() for counts in use]
        others = [experts_of_equal_load(*layer) for layer in zip(shares, sets[family], strict=True)]
        loads[family] = [_load(shares, sets[family]), _load(shares, others)]
        sets[equal_load_name(family)] = others
    rng = np.random.default_rng(seed)
    for number in range(RANDOM):
        sets[f"random {number + 1}"] = [
            rng.choice(layer_lift.shape[1], GONE, replace=False).tolist() for layer_lift in lifts
        ]
    problems = pick_of_each_family("test", seed, count)
    result: dict[str, Any] = {
        "families": families,
        "family": [problem.family for problem in problems],
        "gone": sets,
        "load": loads,
        "right": {"none": grade_greedy_answers(model, chat, problems, seed, count)},
    }  # fmt: skip
    for name, gone in sets.items():
        result["right"][name] = grade_greedy_answers(without_experts(model, gone), chat, problems, seed, count)
    return result


def equal_load_name(family: str) -> str:
    """Return the name of the control set of a family, whose experts process as many of the family's tokens as its own experts."""
    return f"equal load to {family}"


def experts_of_equal_load(shares: np.ndarray, own: Sequence[int]) -> list[int]:
    """Return `GONE` to twice as many experts other than `own`, whose total share of a family's tokens is nearest to that of `own`.

    `shares` [experts] is the share of the family's tokens that each expert processes.
    """
    others = [expert for expert in range(len(shares)) if expert not in own]
    sets = (chosen for size in range(GONE, 2 * GONE + 1) for chosen in combinations(others, size))
    return list(min(sets, key=lambda chosen: abs(shares[list(chosen)].sum() - shares[list(own)].sum())))


def _load(shares: Sequence[np.ndarray], gone: Sequence[Sequence[int]]) -> float:
    """Return the mean over layers of the share of a family's tokens that the experts `gone` [layer] process."""
    return float(np.mean([layer[list(chosen)].sum() for layer, chosen in zip(shares, gone, strict=True)]))


def removed_loads(ablation: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the loads of the families' own experts and of the controls of equal load, by family."""
    return {
        arm: {"all": {family: loads[side] for family, loads in ablation["load"].items()}}
        for side, arm in enumerate((OWN, EQUAL_LOAD))
    }


def max_routed_expert_count(model: Decoder) -> int:
    """Return the number of routed experts in the largest MoE layer."""
    return max(ffn.n_router_choices() for ffn in model.config.ffns)


def pick_of_each_family(split: Split, seed: int, count: int) -> list[Problem]:
    """Return `count` problems of each family and level."""
    return pick_problems(load_task(TASK, options=OPTIONS), split, count, seed, True)


def family_labels(problems: Sequence[Problem]) -> tuple[np.ndarray, list[str]]:
    """Return the family index of each problem, and the list of families."""
    families = list(dict.fromkeys(problem.family for problem in problems))
    return np.asarray([families.index(problem.family) for problem in problems]), families


def grade_greedy_answers(
    model: Decoder, chat: ChatFormat, problems: Sequence[Problem], seed: int, count: int
) -> list[int]:
    """Return 1 for each problem that is answered correctly, else 0. The model is forced to think, and decoding is greedy."""
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
        measured={},
    )
    right = mean_per_problem(result.samples, is_right)
    return [int(right[problem.key]) for problem in problems]
