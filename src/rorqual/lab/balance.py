"""Is balance by a router bias free (V3, section 2.1.2)? Three trainings a seed that differ in what evens the load, and in nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rorqual.core.records import RunDir
from rorqual.data.chat import ChatFormat, chat_format
from rorqual.data.pack import pack
from rorqual.data.tokenizer import Tokenizer
from rorqual.lab.experiment import Experiment, amount
from rorqual.lab.finding import Chart, Contrast, Finding, Series, Table, Verdict, contrast_of_values
from rorqual.lab.job import Compute, Job, Train, value
from rorqual.model.decoder import Decoder
from rorqual.model.load.run import load_run
from rorqual.ops.losses import token_logprobs
from rorqual.recipes.quickstart import FULL, TASK
from rorqual.recipes.sft import sft
from rorqual.tasks.find import load_task, safe_problems
from rorqual.train import balance
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives import AuxBalance, NextToken, Objective
from rorqual.train.run import Run
from rorqual.train.sources.worked import worked_sample

Arm = Literal["none", "bias", "aux"]
ARMS: Mapping[Arm, str] = {"none": "nothing", "bias": "router bias", "aux": "auxiliary loss"}
RIVALS: tuple[Arm, ...] = ("none", "aux")
GAMMA = 0.003
"""Of 0.01, 0.003 and 0.001, tried on seed 1: 0.01 evens sooner and learns more slowly, 0.001 is not done in so few steps."""
ALPHA = 0.01
"""Of 0.01 and 0.001, tried on seed 1: Switch's own; with 0.001 the load is still uneven after a third of the steps."""
STEPS, ROWS = 300, 32
TOKENS = 1_000_000
THIRD, HALF_PERCENT = 1 / 3, 0.005
MEASURE = "balance-measure"
CONFIDENCE = 0.95
T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812)
"""Student's t, one-sided 95 %, for 1 to 10 degrees of freedom."""


class BalanceExperiment(Experiment):
    """Load over mean and loss of three arms on held-out tokens."""

    name = "balance"
    title = "Balance without an auxiliary loss"
    claim = (
        "a bias that is added to the router's scores for choosing only keeps the experts evenly loaded, and costs no quality: "
        f"its excess load is at most {THIRD:.0%} of that without it, its loss at most {HALF_PERCENT:.1%} higher"
    )
    source = "DeepSeek-V3, section 2.1.2 and table 5; Wang et al., 2408.15664"
    seeds = 3

    def jobs(self, seed: int, place: Path, share: float) -> list[Job]:
        arms: list[Job] = [
            Train(name=folder(arm), estimate=72 * share, make=partial(training, arm, seed, share)) for arm in ARMS
        ]
        measured = Compute(
            name=MEASURE, estimate=60 * share, needs=tuple(job.name for job in arms),
            function=partial(measure, seed=seed, tokens=amount(TOKENS, share)),
        )  # fmt: skip
        return [*arms, measured]

    def conclude(self, places: Mapping[int, Path], share: float) -> Finding:
        found = [value(place, MEASURE) for place in places.values()]
        excess: dict[Arm, list[float]] = {arm: [excess_load(one["load"][arm]) for one in found] for arm in ARMS}
        loads = [load_contrast(arm, excess) for arm in RIVALS]
        losses: dict[Arm, Contrast] = {arm: loss_contrast(arm, found) for arm in RIVALS}
        return Finding(
            experiment=self.name,
            title=self.title,
            claim=self.claim,
            source=self.source,
            verdict=decide(excess, losses),
            words=words(excess, losses, found),
            contrasts=(*loads, *losses.values()),
            tables=(arms_table(list(places), excess, found), experts_table(found)),
            charts=(training_chart(list(places.values())),),
            seeds=tuple(places),
            share=share,
        )


def folder(arm: Arm) -> str:
    """An arm's run in the seed's folder."""
    return f"balance-{arm}"


def training(arm: Arm, seed: int, share: float) -> Run:
    """The quickstart's model without its prediction module (two layers of 16 experts, two a token), on its worked solutions."""
    run = sft(task=TASK, size=FULL.model, steps=amount(STEPS, share), rows=ROWS, row=FULL.row, think=FULL.think,
              options={"hard": FULL.sft_hard}, seed=seed)  # fmt: skip
    objectives: tuple[Objective, ...] = (NextToken(),)
    if arm == "aux":
        objectives = (*objectives, AuxBalance(coefficient=ALPHA))
    return run.model_copy(
        update={
            "model": run.model.model_copy(update={"num_nextn_predict_layers": 0}),
            "objectives": objectives,
            "balance": balance.Balance(gamma=GAMMA if arm == "bias" else 0.0),
            "micro_batches": 1,  # for the auxiliary loss, and so for all
        }
    )


def measure(place: Path, *, seed: int, tokens: int) -> dict[str, Any]:
    """All arms on the same `tokens` held-out tokens, their biases at rest.

    `load` [arm][layer][expert]: tokens served; `loss` [arm][block]: nats, summed over a block's trained tokens, of which there are
    `trained` [block].
    """
    runs = {arm: RunDir(place / folder(arm)) for arm in ARMS}
    models = {arm: load_run(run) for arm, run in runs.items()}
    load: dict[Arm, list[Tensor]] = {}
    loss: dict[Arm, list[float]] = {arm: [] for arm in ARMS}
    trained: list[float] = []
    seen = 0
    for batch in held_out(chat_format(Tokenizer.load(runs["none"].tokenizer_file)), seed, tokens):
        seen += batch.n_tokens
        trained.append(float(batch.loss_mask.sum()))
        for arm, model in models.items():
            nats, counts = read(model, batch)
            loss[arm].append(nats)
            load[arm] = [a + b for a, b in zip(load[arm], counts, strict=True)] if arm in load else counts
    return {
        "tokens": seen,
        "load": {arm: [layer.tolist() for layer in layers] for arm, layers in load.items()},
        "loss": loss,
        "trained": trained,
    }


def held_out(chat: ChatFormat, seed: int, tokens: int, problems: int = 500) -> Iterator[TrainBatch]:
    """Blocks of rows of worked solutions of the test split, mixed as in training, until there are `tokens`, padding not counted.

    After `problems` the generator begins anew with a seed of its own: it would look ever longer for a problem that is still fresh.
    """
    task = load_task(TASK, options={"hard": FULL.sft_hard})
    rng = random.Random(f"{seed} held out")
    for number in count():
        chunk = islice(safe_problems(task, "test", 1_000_003 * seed + number), problems)
        samples = [worked_sample(problem, chat, think=rng.random() < FULL.think) for problem in chunk]
        packed = pack(samples, FULL.row, pad=chat.tokenizer.pad).batch
        for start in range(0, packed.n_rows, ROWS):
            block = packed.rows(start, min(start + ROWS, packed.n_rows))
            yield TrainBatch.from_packed(block)
            tokens -= block.n_tokens
            if tokens <= 0:
                return


@torch.no_grad()
def read(model: Decoder, batch: TrainBatch) -> tuple[float, list[Tensor]]:
    """Summed loss of the trained tokens, and for each layer how many tokens each expert served."""
    output = model(batch.tokens, batch.positions, segments=batch.segments)
    at = batch.loss_mask.nonzero(as_tuple=True)
    logprobs = token_logprobs(model.logits(output.hidden[at]), batch.targets[at])
    valid = batch.segments.flatten() >= 0
    counts = [balance.count(routing, valid, routing.scores.shape[-1]) for routing in output.routing]
    return -float(logprobs.double().sum()), counts


def excess_load(layers: Sequence[Sequence[int]]) -> float:
    """Largest load over mean less one, mean over layers: 0 is perfect balance."""
    return balance.load_ratio([torch.tensor(layer) for layer in layers]) - 1


def load_contrast(arm: Arm, excess: Mapping[Arm, Sequence[float]]) -> Contrast:
    """The bias's excess load against an arm's."""
    return contrast_of_values(
        f"largest load over mean less one: {ARMS[arm]}, then router bias",
        [[x] for x in excess[arm]],
        [[x] for x in excess["bias"]],
        unit="ratio",
        confidence=CONFIDENCE,
    )


def loss_contrast(arm: Arm, found: Sequence[Mapping[str, Any]]) -> Contrast:
    """The bias's loss against an arm's, both divided by that arm's: a difference of 0.005 is half a percent."""
    scaled: dict[Arm, list[np.ndarray]] = {arm: [], "bias": []}
    for one in found:
        for side in scaled:
            scaled[side].append(np.asarray(one["loss"][side]) * len(one["trained"]) / sum(one["loss"][arm]))
    return contrast_of_values(
        f"held-out loss over that of the first: {ARMS[arm]}, then router bias",
        [list(x) for x in scaled[arm]],
        [list(x) for x in scaled["bias"]],
        unit="ratio",
        confidence=CONFIDENCE,
    )


def bounds(contrast: Contrast) -> tuple[float, float]:
    """One-sided 95 % bounds of a difference: the wider of the bootstrap's interval and Student's over seeds.

    Three seeds resampled never lie outside the three: the bootstrap alone would be too sure.
    """
    differences = [b - a for a, b in contrast.by_seed]
    if len(differences) < 2:
        return contrast.low, contrast.high
    half = T95[min(len(differences) - 1, len(T95)) - 1] * stdev(differences) / len(differences) ** 0.5
    middle = mean(differences)
    return min(contrast.low, middle - half), max(contrast.high, middle + half)


def decide(excess: Mapping[Arm, Sequence[float]], losses: Mapping[Arm, Contrast]) -> Verdict:
    """Holds: in every seed at most a third of the excess load, and the loss's upper bound at most half a percent above either arm's.

    Does not hold: more than a third in every seed, or a lower bound of the loss beyond half a percent. Else open.
    """
    thirds = [bias <= THIRD * none for bias, none in zip(excess["bias"], excess["none"], strict=True)]
    ends = [bounds(contrast) for contrast in losses.values()]
    if not any(thirds) or any(low > HALF_PERCENT for low, _ in ends):
        return "does not hold"
    return "holds" if all(thirds) and all(high <= HALF_PERCENT for _, high in ends) else "open"


def words(
    excess: Mapping[Arm, Sequence[float]], losses: Mapping[Arm, Contrast], found: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    """What came out, in sentences."""
    parts = [bias / none for bias, none in zip(excess["bias"], excess["none"], strict=True)]
    tokens = min(one["tokens"] for one in found)
    lines = [
        f"On {tokens:,} held-out tokens of each seed the busiest expert of a layer carries {1 + mean(excess['bias']):.2f} times the "
        f"mean load with the router bias, {1 + mean(excess['aux']):.2f} times with the auxiliary loss, and "
        f"{1 + mean(excess['none']):.2f} times where nothing evens it (means over layers and seeds).",
        f"The excess over the mean with the bias is {min(parts):.0%} to {max(parts):.0%} of that without; a third was claimed.",
    ]
    for arm, contrast in losses.items():
        low, high = bounds(contrast)
        lines.append(
            f"Held-out loss with the bias against {ARMS[arm]}: {contrast.difference:+.2%}, one-sided 95 % bounds {low:+.2%} and "
            f"{high:+.2%}; at most {HALF_PERCENT:+.1%} was claimed."
        )
    return tuple(lines)


def arms_table(
    seeds: Sequence[int], excess: Mapping[Arm, Sequence[float]], found: Sequence[Mapping[str, Any]]
) -> Table:
    """Every arm of every seed."""
    rows = []
    for place, (seed, one) in enumerate(zip(seeds, found, strict=True)):
        for arm, label in ARMS.items():
            layers = ", ".join(f"{excess_load([layer]):.3f}" for layer in one["load"][arm])
            idle = min(min(layer) / mean(layer) for layer in one["load"][arm])
            loss = sum(one["loss"][arm]) / sum(one["trained"])
            rows.append((str(seed), label, f"{excess[arm][place]:.3f}", layers, f"{idle:.3f}", f"{loss:.5f}"))
    return Table(
        title="Every training",
        heads=(
            "seed",
            "evened by",
            "largest load over mean, less 1",
            "by layer",
            "smallest load over mean",
            "loss, nats",
        ),
        rows=tuple(rows),
        note=f"Router bias: a step of {GAMMA:g} after each update (0.01 and 0.001 were tried on another seed). Auxiliary loss: coefficient "
        f"{ALPHA:g} (0.001 was tried). Loss: mean over the tokens of thinking, answer and end.",
    )


def experts_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """The load of each expert over the mean, sorted, first seed: what the one number hides."""
    rows = []
    for arm, label in ARMS.items():
        for number, layer in enumerate(found[0]["load"][arm], start=1):
            ordered = sorted((x / mean(layer) for x in layer), reverse=True)
            rows.append((label, str(number), " ".join(f"{x:.2f}" for x in ordered)))
    return Table(
        title="Load of each expert over the mean, busiest first (first seed)",
        heads=("evened by", "layer", "load over mean"),
        rows=tuple(rows),
    )


def training_chart(places: Sequence[Path], window: int = 10) -> Chart:
    """The busiest expert's load over training, from the runs' own metrics, in means over `window` steps."""
    series = []
    for arm, label in ARMS.items():
        lines = []
        for place in places:
            loads = [record["load_max_over_mean"] for record in RunDir(place / folder(arm)).metrics()]
            starts = range(0, len(loads), window)
            lines.append(tuple((float(start), mean(loads[start : start + window])) for start in starts))
        middle = tuple((points[0][0], mean(y for _, y in points)) for points in zip(*lines))
        series.append(Series(label=label, points=middle, by_seed=tuple(lines)))
    return Chart(
        name="load",
        title="The busiest expert over training",
        x="step",
        y="largest load over mean",
        series=tuple(series),
        caption=f"Largest load over mean load of a layer in each update's tokens, mean over layers and over {window} steps; "
        "1 is perfect balance. Faint: each seed.",
    )
