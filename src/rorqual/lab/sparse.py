"""Test whether sparse attention keeps the quality of dense attention on long problems (DeepSeek-V3.2-Exp, section 2.1).

Each seed trains one dense model with latent attention in stages of growing length. The recipe `sparsify` turns it into a model with
an indexer. Two baselines select positions without an indexer: a window with sinks, and random positions. The baselines train as
many steps as the indexer and the sparse model together. All sparse runs train at one budget and are measured at three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch

from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.data.pack import Sample
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.lab.charts import Readings, Tradeoff
from rorqual.lab.experiment import Experiment, Pair, Quantity, amount, in_order
from rorqual.lab.held_out import draw, run_blocks, solve
from rorqual.lab.job import Compute, ExperimentJob, JobCost, Train, run_cost, value
from rorqual.lab.sparse_kinds import AttentionSelectionConfig, RandomSelectionConfig
from rorqual.model.attention import (
    AttentionConfig,
    BlockSelectionConfig,
    MLAConfig,
    Selection,
    WindowConfig,
)
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.decoder import Decoder
from rorqual.model.ffn import DenseConfig
from rorqual.model.init import build
from rorqual.model.load.run import load_run, read_model_config
from rorqual.recipes.sparsify import SparsifyConfig, sparsify
from rorqual.recipes.start import finetune_optim
from rorqual.tasks.base import Split
from rorqual.train.loop import fit
from rorqual.train.optim import AdamWConfig, MuonConfig
from rorqual.train.run import Run, Start
from rorqual.train.schedule import Schedule
from rorqual.train.sources import WorkedConfig

Arm = Literal["dense", "dsa", "adaptive", "window", "random", "block", "oracle"]
ARMS: Mapping[Arm, str] = {
    "dense": "dense",
    "dsa": "indexer",
    "adaptive": "indexer, adaptive budget",
    "window": "window with sinks",
    "random": "random positions",
    "block": "block means",
    "oracle": "most attended positions",
}
BASELINES: tuple[Arm, ...] = ("window", "random")
BUDGETS: Mapping[str, int] = {"a half": 2, "a quarter": 4, "an eighth": 8}
"""The divisor of each budget: a query attends to (text length / divisor) positions."""
TRAINED = BUDGETS["a quarter"]
"""The budget of the training. Other budgets are measured without further training."""
KINDS: Mapping[str, str] = {"needle": "needle", "copy": "copied number", "count": "counting after the text"}
PERCENT, POINTS = 0.01, 0.02
"""The largest relative increase of the loss, and the largest drop in accuracy, that the claim allows."""
EXACT, LOSS, PICKED, BUDGET = (
    "exact solutions",
    "loss",
    "positions per query",
    "budget, as a share of the text's length",
)
LENGTH = 1024
"""Number of characters of a prompt. Each character is a token."""
REPLY = 76
"""Number of tokens of a row besides the prompt: the longest reply and the special tokens."""
MUON_RATE, ADAMW_RATE = 0.006, 1.2e-2
WARMUP, SPARSE, ROWS = 90, 30, 4
"""Number of warm-up steps, number of steps with sparse attention, and rows per step."""
WARMUP_RATE, SPARSE_RATE = 1e-2, 5e-4
MEASURED: Mapping[str, int] = {"needle": 64, "copy": 16, "count": 16}
"""Number of held-out problems of each kind."""
MORE: tuple[Arm, ...] = ("dense", "dsa", "adaptive")
"""Arms with twice as many problems of kind `needle`, because the goals limit how much their accuracies may differ."""
SINKS, BLOCK_SIZE, CAP = 4, 16, 2
"""Sinks of arm `window`, positions per block of arm `block`, and `index_topk` of arm `adaptive` as a multiple of its budget."""


@dataclass(frozen=True)
class TrainingStage:
    """A stage of the training: the options of the task `long`, and the amounts of work."""

    name: str
    options: Mapping[str, Any]
    steps: int
    rows: int
    row: int
    core_seconds: float
    decay: float = 0.0


DENSE = "sparse-dense"
PAIRS = "pairs"
LEARNED, STARTS = 0.1, 8
"""Retrieval counts as learned if the mean loss of the last 50 steps of the stage `PAIRS` is below `LEARNED`. Otherwise, the stage
begins again with other initial weights, at most `STARTS` times in all.

A model that writes one of the values at random has a loss of about 0.4.
"""


def stages(length: int) -> tuple[TrainingStage, ...]:
    """Return the stages of the dense training, which ends with texts of up to `length` characters.

    The model first learns retrieval, from short texts with few pairs and without other problems. It then learns counting, also
    from short texts. Longer texts need more steps for both, and retrieval needs more steps beside other problems
    (docs/log/sparse-attention.md).
    """
    few = {"length": 50, "shortest": 30, "pairs": 4, "questions": 4}
    short = {"names": list(KINDS), "length": length // 4, "shortest": 64, "questions": 8}
    long = {"names": list(KINDS), "length": length, "shortest": max(64, length // 8), "questions": 8}
    return (
        TrainingStage(PAIRS, {"names": ["needle"]} | few, 600, 32, 148, 180),
        TrainingStage("mixed", {"names": list(KINDS)} | few, 1000, 32, 148, 200),
        TrainingStage("short", short, 800, 8, length // 4 + REPLY, 130),
        TrainingStage("dense", long, 1200, 4, length + REPLY, 650, 0.5),
    )


def dense_model(length: int) -> ModelConfig:
    """Return the dense model: three layers with latent attention and dense feed-forward networks."""
    mla = MLAConfig(
        num_attention_heads=4,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=32,
    )
    return ModelConfig(
        vocab_size=BASE_VOCAB,
        hidden_size=64,
        stages=(Stage(layers=3, attention=mla, ffn=DenseConfig(intermediate_size=128)),),
        max_position_embeddings=2 * length,
        initializer_range=0.1,
    )


@dataclass(frozen=True, kw_only=True)
class TrainUntilLearned(Train):
    """A training run that begins again from other initial weights until it has learned its problems.

    From some initial weights, retrieval is learned within 500 to 750 steps; from others, it was not learned within 1,250
    (docs/log/sparse-attention.md). The choice uses only losses of the training, and all arms of a seed share the result. The
    cost includes all starts.
    """

    def work(self, place: Path) -> JobCost:
        run, out = self.make(), RunDir(place / self.name)
        cost = JobCost(seconds=0, core_seconds=0)
        for start in range(STARTS):
            failed = RunDir(place / f"{self.name}-{start}")
            if not failed.path.exists():
                fit(run.model_copy(update={"seed": run.seed + 1000 * start}), out, threads=1, quiet=True, extend=False)
                if start == STARTS - 1 or fmean([record["loss"] for record in out.metrics()][-50:]) < LEARNED:
                    break
                out.path.rename(failed.path)
            cost += run_cost(failed)
        return cost + run_cost(out)


def training(
    number: int,
    place: Path,
    seed: int,
    share: float,
    length: int = LENGTH,
    model: ModelConfig | None = None,
    arm: str = "sparse",
) -> Run:
    """Return the training run of stage `number` of an arm, which starts from the stage before. The default model is `dense_model`."""
    before, stage = stages(length)[number - 1], stages(length)[number]
    steps = amount(stage.steps, share)
    return Run(
        recipe="sft",
        seed=seed,
        steps=steps,
        start=Start(run=str(place / f"{arm}-{before.name}")) if number else Start(),
        model=model or dense_model(length),
        source=WorkedConfig(
            task="long", options=dict(stage.options), think=float(number > 0), rows=stage.rows, row=stage.row
        ),
        optim=MuonConfig(
            lr=MUON_RATE,
            adamw=AdamWConfig(lr=ADAMW_RATE, betas=(0.9, 0.98)),
            schedule=Schedule(warmup=max(1, min(20, steps // 10)), decay=stage.decay),
        ),
        micro_batches=1,
        save_seconds=20.0,
    )


def training_jobs(
    seed: int,
    place: Path,
    share: float,
    length: int,
    *,
    upto: int,
    model: ModelConfig | None = None,
    arm: str = "sparse",
    slower: float = 1.0,
) -> list[ExperimentJob]:
    """Return the jobs of the first `upto` stages of an arm. A step takes `slower` times as long as with `dense_model`."""
    jobs: list[ExperimentJob] = []
    for number, stage in enumerate(stages(length)[:upto]):
        needs = (jobs[-1].name,) if jobs else ()
        make = partial(training, number, place, seed, share, length, model, arm)
        train = TrainUntilLearned if stage.name == PAIRS else Train
        estimate = stage.core_seconds * slower * share
        jobs.append(train(name=f"{arm}-{stage.name}", estimate=estimate, needs=needs, make=make))
    return jobs


DSA = "sparse-dsa"
RUNS: Mapping[Arm, str] = {
    "dense": DENSE,
    "dsa": f"{DSA}/sparse",
    "adaptive": f"{DSA}/sparse",
    "window": "sparse-window",
    "random": "sparse-random",
    "block": DENSE,
    "oracle": f"{DSA}/sparse",
}
"""The run whose weights each arm uses."""


@dataclass(frozen=True, kw_only=True)
class Sparsify(ExperimentJob):
    """The recipe `sparsify`, from the dense run in the seed's folder. The result is the run `place/NAME/sparse`."""

    seed: int
    share: float
    length: int

    def work(self, place: Path) -> JobCost:
        source = long_problems(self.length)
        config = SparsifyConfig(
            index_topk=self.length // TRAINED,
            warmup=amount(WARMUP, self.share),
            warmup_lr=WARMUP_RATE,
            steps=amount(SPARSE, self.share),
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
    """Return the data of all training with sparse attention: problems of up to the full length.

    Short texts contain more replies per token. On one dev seed, an indexer trained only on texts of the full length selected
    well for most queries, but not for the queries of reply tokens. Reply tokens are a hundredth of all tokens.
    """
    options = {"names": list(KINDS), "length": length, "shortest": 64, "questions": 8}
    return WorkedConfig(task="long", options=options, rows=ROWS, row=length + REPLY)


def baseline(arm: Arm, place: Path, seed: int, share: float, length: int = LENGTH) -> Run:
    """Return the training run of a baseline: as many steps on the same data as the indexer and the sparse model together."""
    dense = RunDir(place / DENSE)
    return Run(
        recipe="sft",
        seed=seed,
        steps=amount(WARMUP, share) + amount(SPARSE, share),
        start=Start(run=str(dense.path)),
        model=selecting(arm, read_model_config(dense), length // TRAINED, seed=seed),
        source=long_problems(length),
        optim=finetune_optim(SPARSE_RATE),
        save_seconds=20.0,
    )


def selecting(arm: Arm, model: ModelConfig, budget: int, *, seed: int = 0, top_p: float = 1.0) -> ModelConfig:
    """Return `model` with the attention of `arm`, in which each query attends to `budget` positions."""

    def attention(layer: int, given: AttentionConfig) -> AttentionConfig:
        assert isinstance(given, MLAConfig)
        mla = {name: getattr(given, name) for name in MLAConfig.model_fields if name != "kind"}
        if arm in ("dsa", "adaptive"):
            cap = budget if arm == "dsa" else CAP * budget
            return given.model_copy(update={"index_topk": cap, "index_top_p": top_p})
        if arm == "window":
            return WindowConfig(**mla, window=budget - SINKS, sinks=SINKS)
        if arm == "random":
            return RandomSelectionConfig(**mla, topk=budget, seed=seed, layer=layer)
        if arm == "block":
            return BlockSelectionConfig(**mla, block_size=BLOCK_SIZE, block_topk=budget // BLOCK_SIZE - 1)
        return AttentionSelectionConfig(**mla, topk=budget) if arm == "oracle" else given

    layers = tuple(
        stage.model_copy(update={"layers": 1, "attention": attention(layer, stage.attention)})
        for layer, stage in enumerate(model.layers)
    )
    return model.model_copy(update={"stages": layers})


def load(arm: Arm, place: Path, budget: int, *, seed: int, top_p: float = 1.0) -> Decoder:
    """Return the model of `arm` with another budget. Weights of an indexer that the arm does not use are left out."""
    trained = load_run(RunDir(place / RUNS[arm]))
    model = build(selecting(arm, trained.config, budget, seed=seed, top_p=top_p), seed=0)
    weights = trained.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model


def solutions(
    place: Path, seed: int, kind: str, count: int, split: Split, length: int = LENGTH, run: str = DENSE
) -> list[Sample]:
    """Return `count` worked solutions of one kind of problem. All arms of a seed use the same problems."""
    chat = chat_format(Tokenizer.load(RunDir(place / run).tokenizer_file))
    return solve(draw("long", {"names": [kind], "length": length}, split, seed, count), chat)


def score_solutions(model: Decoder, samples: Sequence[Sample], record: Sequence[str] = ("selected",)) -> dict[str, Any]:
    """Return, for each solution, the mean loss of its trained tokens, and whether each of these tokens is the most likely one.

    If every token is the most likely one, the model writes exactly this solution at temperature 0. `picked` is the mean
    number of selected positions per query and layer, or 0 for dense attention. `record` names what sparse attention records.
    """
    losses: list[float] = []
    right: list[bool] = []
    picked, queries = 0, 0
    for block in run_blocks(model, samples, 8, record if model.needs_cache else ()):
        losses += block.mean_losses()
        right += (block.right | (block.batch.loss_mask == 0)).all(1).tolist()
        valid = (block.batch.segments >= 0).flatten()
        for selected in block.output.recorded.get("selected", ()):
            picked += int((selected[valid] >= 0).sum())
            queries += int(valid.sum())
    return {"loss": losses, "right": right, "picked": picked / max(queries, 1)}


@torch.no_grad()
def matching_top_p(model: Decoder, samples: Sequence[Sample], budget: int) -> float:
    """Return the `index_top_p` at which `model` selects as many positions on average as with `index_topk=budget`.

    The model runs once per sample, without `index_top_p`, and each candidate value is applied to the recorded scores. Deeper
    layers therefore receive inputs to which no `index_top_p` was applied.
    """
    found: list[Selection] = []
    for sample in samples:
        output = model(torch.tensor([sample.ids]), record=("selected", "index_scores"))
        found += map(Selection, output.recorded["selected"], output.recorded["index_scores"])
    wanted = sum(int((selection.rows[:, :budget] >= 0).sum()) for selection in found)
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        picked = sum(int((selection.top_p(middle).rows >= 0).sum()) for selection in found)
        low, high = (middle, high) if picked < wanted else (low, middle)
    return high


def measure(place: Path, *, arm: Arm, seed: int, share: float, length: int = LENGTH) -> dict[str, Any]:
    """Measure `arm` on held-out problems: at every budget, or once if its attention is dense.

    `result[divisor][kind]` is the result of `score_solutions` on one kind of problem, at a budget of `length` / `divisor`. For the
    adaptive budget, `result[divisor]["top_p"]` is the `index_top_p`, which is chosen on problems of the dev split.
    """
    counts = {
        kind: amount(count * (2 if arm in MORE and kind == "needle" else 1), share) for kind, count in MEASURED.items()
    }
    problems = {kind: solutions(place, seed, kind, count, "test", length) for kind, count in counts.items()}
    results: dict[str, Any] = {}
    for divisor in BUDGETS.values() if arm != "dense" else (1,):
        budget, cut = length // divisor, dict[str, float]()
        model = load(arm, place, budget, seed=seed)
        if arm == "adaptive":
            chosen = [sample for kind in KINDS for sample in solutions(place, seed, kind, 2, "dev", length)]
            cut["top_p"] = matching_top_p(model, chosen, budget)
            model = load(arm, place, budget, seed=seed, top_p=cut["top_p"])
        results[str(divisor)] = {kind: score_solutions(model, samples) for kind, samples in problems.items()} | cut
    return results


def measured_by(arm: Arm) -> str:
    """Return the name of the job that measures an arm."""
    return f"sparse-measure-{arm}"


def at_budget(arm: Arm, divisor: int) -> str:
    """Return the name of an arm at a budget."""
    return f"{arm}/{divisor}"


def pair(a: Arm, b: Arm, quantity: str, divisor: int = TRAINED, groups: tuple[str, ...] = (), **rule: Any) -> Pair:
    """Return the pair of two arms at a budget. Losses are divided by the mean loss of `a`, so that 0.01 is one percent."""
    label = next(label for label, own in BUDGETS.items() if own == divisor)
    question = (
        f"{EXACT if quantity == EXACT else 'loss over that of dense attention'}, {label}: {ARMS[a]}, then {ARMS[b]}"
    )
    names = {"a": at_budget(a, divisor), "b": at_budget(b, divisor)}
    return Pair(question=question, quantity=quantity, **names, groups=groups, relative=quantity == LOSS, **rule)


NEEDLE = ("needle",)


class SparseExperiment(Experiment):
    """Train the runs on texts of up to `length` characters, measure all arms, and judge the goals."""

    name = "sparse"
    title = "Sparse attention on long problems"
    claim = (
        "attention to a quarter of the positions, chosen by an indexer, is as good as dense attention: the loss is at most 1 % "
        "higher and the needle accuracy at most 2 points lower. A window and random positions are worse"
    )
    source = "DeepSeek-V3.2-Exp, section 2.1"
    first_seed = 200
    arms = {
        at_budget(arm, divisor): f"{text}, {label}" for label, divisor in BUDGETS.items() for arm, text in ARMS.items()
    }
    quantities = {
        EXACT: Quantity("points"),
        LOSS: Quantity("nats"),
        PICKED: Quantity("tokens"),
        BUDGET: Quantity("ratio"),
    }
    pairs = (
        pair("dense", "dsa", LOSS, claimed=("all",), bound=PERCENT, side="below"),
        pair("dense", "dsa", EXACT, claimed=NEEDLE, bound=-POINTS),
        *(pair(arm, "dsa", EXACT, groups=NEEDLE, claimed=NEEDLE) for arm in BASELINES),
        *(
            pair("dsa", "adaptive", EXACT, divisor, NEEDLE, claimed=NEEDLE, bound=-POINTS)
            for divisor in BUDGETS.values()
        ),
        *(pair("dense", arm, quantity) for arm in ARMS if arm not in ("dense", "dsa") for quantity in (LOSS, EXACT)),
    )
    charts = tuple(
        Tradeoff(
            f"accuracy-{kind}",
            BUDGET,
            EXACT,
            {text: [at_budget(arm, at) for at in BUDGETS.values()] for arm, text in ARMS.items()},
            kind,
        )
        for kind in KINDS
    )
    note = (
        "Loss: nats per token of thinking, answer and end-of-turn. Exact: every token of the solution is the most likely one. Only a quarter "
        "of the positions was trained. Block means use the weights of dense attention. The adaptive budget and the most attended positions "
        "use the weights of the indexer's model."
    )

    def __init__(self, length: int = LENGTH) -> None:
        self.length = length

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        jobs = training_jobs(seed, place, share, self.length, upto=4)
        jobs.append(
            Sparsify(name=DSA, estimate=115 * share, needs=(DENSE,), seed=seed, share=share, length=self.length)
        )
        for arm in BASELINES:
            make = partial(baseline, arm, place, seed, share, self.length)
            jobs.append(Train(name=RUNS[arm], estimate=95 * share, needs=(DENSE,), make=make))
        for arm in ARMS:
            function = partial(measure, arm=arm, seed=seed, share=share, length=self.length)
            needs = (RUNS[arm].split("/")[0],)
            estimate = (3 if arm == "dense" else 60) * share
            jobs.append(Compute(name=measured_by(arm), estimate=estimate, needs=needs, function=function))
        return jobs

    def read(self, place: Path) -> Readings:
        measured = {arm: value(place, measured_by(arm)) for arm in ARMS}
        found = {
            at_budget(arm, at): one.get(str(at), one.get("1"))
            for at in BUDGETS.values()
            for arm, one in measured.items()
        }
        return readings_of(found) | {BUDGET: {arm: in_order([1 / int(arm.split("/")[1])]) for arm in found}}


def readings_of(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the readings of results of `score_solutions` by arm and kind. In the loss, each kind has the same weight."""
    fewest = min(len(kinds[kind]["loss"]) for kinds in found.values() for kind in KINDS)
    return {
        EXACT: {arm: {kind: dict(enumerate(kinds[kind]["right"])) for kind in KINDS} for arm, kinds in found.items()},
        LOSS: {
            arm: {
                "all": {(kind, item): loss for kind in KINDS for item, loss in enumerate(kinds[kind]["loss"][:fewest])}
            }
            for arm, kinds in found.items()
        },
        PICKED: {arm: {kind: {0: kinds[kind]["picked"]} for kind in KINDS} for arm, kinds in found.items()},
    }
