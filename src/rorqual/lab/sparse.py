"""Test whether sparse attention keeps the quality of dense attention on long problems (DeepSeek-V3.2-Exp, section 2.1).

Each seed trains one dense model with latent attention in stages of growing length. The recipe `sparsify` turns the dense model
into a model with an indexer. Two baselines select positions without an indexer: a window with sinks, and random positions. The
baselines, and a copy of the dense model, train for as many steps as the indexer and the sparse model together. All sparse models
train with the same number of selected keys per query, and are measured with three different numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from rorqual.core.records import RunDir
from rorqual.data.pack import TrainingSample
from rorqual.lab.experiment import ArmPair, Experiment, Quantity, Readings, scale_amount
from rorqual.lab.job import ComputeJob, ExperimentJob, JobCost, TrainJob, load_value, run_cost
from rorqual.lab.long_scores import (
    EXACT,
    LOSS,
    NEEDLE,
    PERCENT,
    PICKED,
    POINTS,
    score_readings,
    score_solutions,
    solutions,
)
from rorqual.lab.long_training import DENSE, KINDS, LENGTH, REPLY, training_jobs
from rorqual.lab.random_selection import RandomSelectionConfig
from rorqual.model.attention import (
    AttentionConfig,
    MLAConfig,
    SelectedRows,
    SlidingWindowConfig,
)
from rorqual.model.config import ModelConfig
from rorqual.model.decoder import Decoder
from rorqual.model.init import build
from rorqual.model.load.run_directory import load_run, read_model_config
from rorqual.recipes.sparsify import SparsifyConfig, sparsify
from rorqual.recipes.start import finetune_optim
from rorqual.train.run import Run, StartConfig
from rorqual.train.sources import WorkedConfig

Arm = Literal["dense", "longer", "dsa", "adaptive", "window", "random"]
ARMS: Mapping[Arm, str] = {
    "dense": "dense",
    "longer": "dense, trained as long",
    "dsa": "indexer",
    "adaptive": "indexer, adaptive budget",
    "window": "window with sinks",
    "random": "random positions",
}
DENSE_ARMS: tuple[Arm, ...] = ("dense", "longer")
"""Arms with dense attention, which have no budget."""
BASELINES: tuple[Arm, ...] = ("window", "random")
BUDGETS: Mapping[str, int] = {"a half": 2, "a quarter": 4, "an eighth": 8}
"""The label and the divisor of each budget. At a budget, a query attends to (text length / divisor) positions."""
TRAINED = BUDGETS["a quarter"]
"""The divisor of the budget at which all sparse models are trained. Other budgets are measured without further training."""
WARMUP, SPARSE, ROWS = 90, 30, 4
"""Number of warm-up steps, number of steps with sparse attention, and number of rows per step."""
WARMUP_RATE, SPARSE_RATE = 1e-2, 5e-4
MEASURED: Mapping[str, int] = {"needle": 64, "copy": 16, "count": 16}
"""Number of held-out problems of each kind on which an arm is measured."""
MORE: tuple[Arm, ...] = ("dense", "longer", "dsa", "adaptive")
"""Arms with twice as many problems of kind `needle`, because the claim
limits how much the accuracies of these arms may differ."""
SINKS, CAP = 4, 2
"""Number of sinks of arm `window`, and `index_topk` of arm `adaptive` as a multiple of the arm's budget."""


DSA = "sparse-dsa"
RUNS: Mapping[Arm, str] = {
    "dense": DENSE,
    "longer": "sparse-longer",
    "dsa": f"{DSA}/sparse",
    "adaptive": f"{DSA}/sparse",
    "window": "sparse-window",
    "random": "sparse-random",
}
"""For each arm, the run whose weights the arm uses, as a path in the seed's folder."""


@dataclass(frozen=True, kw_only=True)
class SparsifyJob(ExperimentJob):
    """A job that applies the recipe `sparsify` to the dense run in the seed's folder. The
    resulting run is the folder `<name>/sparse` in the seed's folder."""

    seed: int
    share: float
    length: int

    def do_job(self, place: Path) -> JobCost:
        source = long_problems(self.length)
        config = SparsifyConfig(
            index_topk=self.length // TRAINED,
            warmup=scale_amount(WARMUP, self.share),
            warmup_lr=WARMUP_RATE,
            steps=scale_amount(SPARSE, self.share),
            lr=SPARSE_RATE,
            task=source.task,
            options=source.options,
            rows=source.rows,
            row=source.row,
            seed=self.seed,
        )
        out = place / self.name
        sparsify(RunDir(place / DENSE), out, config, quiet=True)
        return run_cost(RunDir(out / "warmup")) + run_cost(RunDir(out / "sparse"))


def long_problems(length: int) -> WorkedConfig:
    """Return the data source on which all sparse models are trained: problems with texts of up to `length` characters.

    The source also has short texts, in which a larger share of the tokens belongs to replies. On one dev seed, an indexer
    trained only on texts of the full length selected well for most queries, but not for the queries of reply tokens, which are
    a hundredth of all queries.
    """
    options = {"names": list(KINDS), "length": length, "shortest": 64, "questions": 8}
    return WorkedConfig(task="long", options=options, rows=ROWS, row=length + REPLY)


def baseline_run(arm: Arm, place: Path, seed: int, share: float, length: int = LENGTH) -> Run:
    """Return the training run of a baseline, or of the arm `longer`. Each trains for as many steps as
    the indexer and the sparse model together, on the same data.
    """
    dense = RunDir(place / DENSE)
    return Run(
        recipe="sft",
        seed=seed,
        steps=scale_amount(WARMUP, share) + scale_amount(SPARSE, share),
        start=StartConfig(run=str(dense.path)),
        model=with_selection(arm, read_model_config(dense), length // TRAINED, seed=seed),
        source=long_problems(length),
        optim=finetune_optim(SPARSE_RATE),
        save_seconds=20.0,
    )


def with_selection(arm: Arm, model: ModelConfig, budget: int, *, seed: int = 0, top_p: float = 1.0) -> ModelConfig:
    """Return `model` with the attention of `arm`, in which each query attends to `budget` positions."""

    def attention_config(layer: int, given: AttentionConfig) -> AttentionConfig:
        assert isinstance(given, MLAConfig)
        mla = {name: getattr(given, name) for name in MLAConfig.model_fields if name != "kind"}
        if arm in ("dsa", "adaptive"):
            cap = budget if arm == "dsa" else CAP * budget
            return given.model_copy(update={"index_topk": cap, "index_top_p": top_p})
        if arm == "window":
            return SlidingWindowConfig(**mla, window=budget - SINKS, sinks=SINKS)
        return RandomSelectionConfig(**mla, topk=budget, seed=seed, layer=layer) if arm == "random" else given

    layers = tuple(
        stage.model_copy(update={"layers": 1, "attention": attention_config(layer, stage.attention)})
        for layer, stage in enumerate(model.layers)
    )
    return model.model_copy(update={"stages": layers})


def load(arm: Arm, place: Path, budget: int, *, seed: int, top_p: float = 1.0) -> Decoder:
    """Return the trained model of `arm`, changed to `budget` positions per query. If the arm does not use an indexer, the
    indexer's weights are not loaded."""
    trained = load_run(RunDir(place / RUNS[arm]))
    model = build(with_selection(arm, trained.config, budget, seed=seed, top_p=top_p), seed=0)
    weights = trained.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model


@torch.no_grad()
def matching_top_p(model: Decoder, samples: Sequence[TrainingSample], budget: int) -> float:
    """Return the `index_top_p` at which `model` selects as many positions on average as with `index_topk=budget`.

    The model runs once per sample, without `index_top_p`, and each candidate for `index_top_p` is applied to the recorded
    scores. Deeper layers therefore receive inputs to which no `index_top_p` was applied.
    """
    found: list[SelectedRows] = []
    for sample in samples:
        output = model(torch.tensor([sample.ids]), record=("selected", "index_scores"))
        found += map(SelectedRows, output.recorded["selected"], output.recorded["index_scores"])
    wanted = sum(int((selection.rows[:, :budget] >= 0).sum()) for selection in found)
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        picked = sum(int((selection.keep_top_p(middle).rows >= 0).sum()) for selection in found)
        low, high = (middle, high) if picked < wanted else (low, middle)
    return high


def measure_arm(place: Path, *, arm: Arm, seed: int, share: float, length: int = LENGTH) -> dict[str, Any]:
    """Measure `arm` on held-out problems: at every budget, or only once for an arm with dense attention.

    `result[divisor][kind]` is the result of `score_solutions` on one kind of problem, at a budget of `length` / `divisor`. For the
    arm with an adaptive budget, `result[divisor]["top_p"]` is the `index_top_p`, which is chosen on problems of the dev split.
    """
    counts = {
        kind: scale_amount(count * (2 if arm in MORE and kind == "needle" else 1), share)
        for kind, count in MEASURED.items()
    }
    problems = {kind: solutions(place, seed, kind, count, "test", length) for kind, count in counts.items()}
    results: dict[str, Any] = {}
    for divisor in BUDGETS.values() if arm not in DENSE_ARMS else (1,):
        budget, cut = length // divisor, dict[str, float]()
        model = load(arm, place, budget, seed=seed)
        if arm == "adaptive":
            chosen = [sample for kind in KINDS for sample in solutions(place, seed, kind, 2, "dev", length)]
            cut["top_p"] = matching_top_p(model, chosen, budget)
            model = load(arm, place, budget, seed=seed, top_p=cut["top_p"])
        results[str(divisor)] = {kind: score_solutions(model, samples) for kind, samples in problems.items()} | cut
    return results


def measure_job_name(arm: Arm) -> str:
    """Return the name of the job that measures an arm."""
    return f"sparse-measure-{arm}"


def arm_name_at_budget(arm: Arm, divisor: int) -> str:
    """Return the name of an arm at the budget with divisor `divisor`."""
    return f"{arm}/{divisor}"


def pair(a: Arm, b: Arm, quantity: str, divisor: int = TRAINED, **rule: Any) -> ArmPair:
    """Return the pair of the arms `a` and `b` at one budget. Losses are divided by the mean loss of arm `a`, so that a
    difference of 0.01 is one percent."""
    label = next(label for label, own in BUDGETS.items() if own == divisor)
    what = EXACT if quantity == EXACT else "loss over that of dense attention"
    return ArmPair(
        question=f"{what}, {label}: {ARMS[a]}, then {ARMS[b]}",
        quantity=quantity,
        a=arm_name_at_budget(a, divisor),
        b=arm_name_at_budget(b, divisor),
        relative=quantity == LOSS,
        **rule,
    )


class SparseExperiment(Experiment):
    """The experiment on texts of up to `length` characters: train all arms, measure their losses and accuracies, and compare the arms."""

    name = "sparse"
    title = "Sparse attention on long problems"
    claim = (
        "with attention to a quarter of the positions, chosen by an indexer, the loss is at most 1 % higher and the needle accuracy at most "
        "2 points lower than with dense attention that was trained as long. A window and random positions are worse"
    )
    source = "DeepSeek-V3.2-Exp, section 2.1"
    first_seed = 200
    arms = {
        arm_name_at_budget(arm, divisor): f"{text}, {label}"
        for label, divisor in BUDGETS.items()
        for arm, text in ARMS.items()
    }
    quantities = {
        EXACT: Quantity("points"),
        LOSS: Quantity("nats"),
        PICKED: Quantity("tokens"),
    }
    pairs = (
        pair("longer", "dsa", LOSS, claimed=("all",), bound=PERCENT, side="below"),
        pair("longer", "dsa", EXACT, claimed=NEEDLE, bound=-POINTS),
        *(pair(arm, "dsa", EXACT, groups=NEEDLE, claimed=NEEDLE) for arm in BASELINES),
        *(
            pair("dsa", "adaptive", EXACT, divisor, groups=NEEDLE, claimed=NEEDLE, bound=-POINTS)
            for divisor in BUDGETS.values()
        ),
        *(pair("dense", arm, quantity) for arm in ARMS if arm != "dense" for quantity in (LOSS, EXACT)),
    )
    wording = {
        EXACT: "the share of exact solutions",
        LOSS: "the loss",
        "needle": "on needle problems",
        **{
            arm_name_at_budget(arm, divisor): "with dense attention that was trained as long"
            if arm == "longer"
            else f"with {text} at {label} of the positions"
            for label, divisor in BUDGETS.items()
            for arm, text in ARMS.items()
        },
    }
    note = (
        "Loss: nats per token of thinking, answer and end-of-turn. Exact: every token of the solution is the most likely one. Only a quarter "
        "of the positions was trained. The adaptive budget uses the weights of the indexer's model."
    )

    def __init__(self, length: int = LENGTH) -> None:
        self.length = length

    def runs_of(self, arm: str) -> tuple[str, ...]:
        return tuple(run for name, run in RUNS.items() if name == arm.partition("/")[0])

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        jobs = training_jobs(seed, place, share, self.length, upto=4)
        jobs.append(
            SparsifyJob(name=DSA, estimate=115 * share, needs=(DENSE,), seed=seed, share=share, length=self.length)
        )
        for arm in ("longer", *BASELINES):
            make = partial(baseline_run, arm, place, seed, share, self.length)
            jobs.append(TrainJob(name=RUNS[arm], estimate=95 * share, needs=(DENSE,), make=make))
        for arm in ARMS:
            function = partial(measure_arm, arm=arm, seed=seed, share=share, length=self.length)
            needs = (RUNS[arm].split("/")[0],)
            estimate = (3 if arm in DENSE_ARMS else 60) * share
            jobs.append(ComputeJob(name=measure_job_name(arm), estimate=estimate, needs=needs, function=function))
        return jobs

    def read(self, place: Path) -> Readings:
        measured = {arm: load_value(place, measure_job_name(arm)) for arm in ARMS}
        found = {
            arm_name_at_budget(arm, at): one.get(str(at), one.get("1"))
            for at in BUDGETS.values()
            for arm, one in measured.items()
        }
        return score_readings(found)
