"""Is balance by a router bias free (V3, section 2.1.2)? Three trainings a seed that differ in what evens the load, and in nothing else.

`balance` trains on an endless text, whose loss falls smoothly; `balance-worked` on the families' worked solutions, which are learned
in leaps: there two trainings that differ by rounding differ by percents, and half a percent cannot be seen.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from rorqual.core.records import RunDir, write_atomic
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.lab.balance_data import endless_text, entropy, text_blocks, worked_blocks
from rorqual.lab.balance_found import (
    ARMS,
    HALF_PERCENT,
    RIVALS,
    THIRD,
    Arm,
    arms_table,
    decide,
    excess_load,
    experts_table,
    load_contrast,
    loss_contrast,
    third_contrast,
    training_chart,
    words,
)  # fmt: skip
from rorqual.lab.experiment import Experiment, amount
from rorqual.lab.finding import Contrast, Finding
from rorqual.lab.job import Compute, ExperimentJob, Train, value
from rorqual.model.decoder import Decoder
from rorqual.model.load.run import load_run
from rorqual.ops.losses import token_logprobs
from rorqual.recipes.pretrain import pretrain
from rorqual.recipes.quickstart import FULL, TASK
from rorqual.recipes.sft import sft
from rorqual.train import balance
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives import AuxBalance, NextToken, Objective
from rorqual.train.run import Run

ROWS = 32
TOKENS = 1_000_000
"""Held out, to measure on."""


class Balancing(Experiment):
    """Load over mean and loss of three arms on held-out tokens.

    The model is the quickstart's without its prediction module: two layers of 16 routed experts, two for a token.
    """

    claim = (
        "a bias that is added to the router's scores for choosing only keeps the experts evenly loaded, and costs no quality: "
        f"its excess load is at most {THIRD:.0%} of that without it, its loss less than {HALF_PERCENT:.1%} higher"
    )
    source = "DeepSeek-V3, section 2.1.2 and table 5; Wang et al., 2408.15664"
    gamma: ClassVar[float]
    alpha: ClassVar[float]
    tried: ClassVar[str]
    """What else was tried for these two, and on which seeds."""
    took: ClassVar[tuple[float, float]]
    """Core-seconds of a training and of measuring all three."""

    @abstractmethod
    def training(self, place: Path, seed: int, share: float) -> Run:
        """A training on the experiment's data, before it is told what evens the load."""

    @abstractmethod
    def held_out(self, tokenizer: Tokenizer, seed: int, tokens: int) -> Iterator[TrainBatch]:
        """Blocks of at least `tokens` tokens that no training saw."""

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        arms: list[ExperimentJob] = [
            Train(name=self.folder(arm), estimate=self.took[0] * share, make=partial(self.arm, arm, place, seed, share))
            for arm in ARMS
        ]
        return [*arms, Compute(name=self.measured, estimate=self.took[1] * share, needs=tuple(job.name for job in arms),
                               function=partial(self.measure, seed=seed, tokens=amount(TOKENS, share)))]  # fmt: skip

    def folder(self, arm: Arm) -> str:
        """An arm's run in the seed's folder."""
        return f"{self.name}-{arm}"

    @property
    def measured(self) -> str:
        """The job that measures all arms."""
        return f"{self.name}-measure"

    def arm(self, arm: Arm, place: Path, seed: int, share: float) -> Run:
        """The training of one arm."""
        run = self.training(place, seed, share)
        objectives: tuple[Objective, ...] = (NextToken(),)
        if arm == "aux":
            objectives = (*objectives, AuxBalance(coefficient=self.alpha))
        return run.model_copy(
            update={
                "model": run.model.model_copy(update={"num_nextn_predict_layers": 0}),
                "objectives": objectives,
                "balance": balance.Balance(gamma=self.gamma if arm == "bias" else 0.0),
                "micro_batches": 1,  # for the auxiliary loss, and so for all
            }
        )

    def measure(self, place: Path, *, seed: int, tokens: int) -> dict[str, Any]:
        """All arms on the same held-out tokens, their biases at rest.

        `load` [arm][layer][expert]: tokens served; `loss` [arm][block]: nats, summed over a block's trained tokens, of which there
        are `trained` [block].
        """
        runs = {arm: RunDir(place / self.folder(arm)) for arm in ARMS}
        models = {arm: load_run(run) for arm, run in runs.items()}
        load: dict[Arm, list[Tensor]] = {}
        loss: dict[Arm, list[float]] = {arm: [] for arm in ARMS}
        trained: list[float] = []
        seen = 0
        for batch in self.held_out(Tokenizer.load(runs["none"].tokenizer_file), seed, tokens):
            seen += batch.n_tokens
            trained.append(float(batch.loss_mask.sum()))
            for arm, model in models.items():
                nats, counts = read(model, batch)
                loss[arm].append(nats)
                load[arm] = [a + b for a, b in zip(load[arm], counts, strict=True)] if arm in load else counts
        served = {arm: [layer.tolist() for layer in layers] for arm, layers in load.items()}
        return {"tokens": seen, "load": served, "loss": loss, "trained": trained}

    def conclude(self, places: Mapping[int, Path]) -> Finding:
        found = [value(place, self.measured) for place in places.values()]
        excess: dict[Arm, list[float]] = {arm: [excess_load(one["load"][arm]) for one in found] for arm in ARMS}
        third = third_contrast(excess)
        loads = [third, *(load_contrast(arm, excess) for arm in RIVALS)]
        losses: dict[Arm, Contrast] = {arm: loss_contrast(arm, found) for arm in RIVALS}
        runs: list[Mapping[Arm, Path]] = [{arm: place / self.folder(arm) for arm in ARMS} for place in places.values()]
        note = (
            f"Router bias: a step of {self.gamma:g} after each update. Auxiliary loss: coefficient {self.alpha:g}. {self.tried} "
            f"{self.said_of_loss()}"
        )
        return self.found(
            places,
            verdict=decide(third, losses),
            words=words(excess, losses, found),
            contrasts=(*loads, *losses.values()),
            tables=(arms_table(list(places), excess, found, note), experts_table(found)),
            charts=(training_chart(runs),),
        )

    @abstractmethod
    def said_of_loss(self) -> str:
        """What the loss is a mean over."""


class BalanceExperiment(Balancing):
    """On an endless text, every token predicted, as in pretraining."""

    name = "balance"
    title = "Balance without an auxiliary loss"
    gamma, alpha = 0.01, 0.01
    tried = "Tried on seed 1: a step of 0.003."
    took = (54.0, 53.0)
    steps: ClassVar[int] = 250

    def training(self, place: Path, seed: int, share: float) -> Run:
        file = place / f"{self.name}.txt"
        steps = amount(self.steps, share)
        if not file.is_file():  # a function of seed and share, so that whoever asks first writes it
            needed = steps * ROWS * (FULL.row + 1) * 10 // 9 + 10_000  # a tenth is held out by the source
            place.mkdir(parents=True, exist_ok=True)
            write_atomic(file, endless_text(needed, seed).encode())
        return pretrain(data=str(file), steps=steps, rows=ROWS, row=FULL.row, seed=seed)

    def held_out(self, tokenizer: Tokenizer, seed: int, tokens: int) -> Iterator[TrainBatch]:
        blocks = -(-tokens // (ROWS * FULL.row))
        text = endless_text(blocks * ROWS * FULL.row + 2, 1_000_003 * (seed + 1))
        return text_blocks(tokenizer, text, FULL.row, ROWS)

    def said_of_loss(self) -> str:
        return f"Loss: mean over all tokens; the text's own entropy is {entropy():.3f} nats a character."


class BalanceWorked(Balancing):
    """On the families' worked solutions, half of them answered at once, as the quickstart's teacher is trained."""

    name = "balance-worked"
    title = "Balance without an auxiliary loss, on worked solutions"
    gamma, alpha = 0.003, 0.01
    tried = "Tried on seed 1: steps of 0.01 and 0.001, and a coefficient of 0.001."
    took = (66.0, 96.0)
    steps: ClassVar[int] = 300

    def training(self, place: Path, seed: int, share: float) -> Run:
        return sft(task=TASK, size=FULL.model, steps=amount(self.steps, share), rows=ROWS, row=FULL.row, think=FULL.think,
                   options={"hard": FULL.sft_hard}, seed=seed)  # fmt: skip

    def held_out(self, tokenizer: Tokenizer, seed: int, tokens: int) -> Iterator[TrainBatch]:
        return worked_blocks(chat_format(tokenizer), seed, tokens, ROWS)

    def said_of_loss(self) -> str:
        return "Loss: mean over the tokens of thinking, answer and end."


@torch.no_grad()
def read(model: Decoder, batch: TrainBatch) -> tuple[float, list[Tensor]]:
    """Summed loss of the trained tokens, and for each layer how many tokens each expert served."""
    output = model(batch.tokens, batch.positions, segments=batch.segments)
    at = batch.loss_mask.nonzero(as_tuple=True)
    logprobs = token_logprobs(model.logits(output.hidden[at]), batch.targets[at])
    valid = batch.segments.flatten() >= 0
    counts = [balance.count(routing, valid, routing.scores.shape[-1]) for routing in output.routing]
    return -float(logprobs.double().sum()), counts
