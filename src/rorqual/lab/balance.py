"""Test whether load balancing with a router bias costs quality (DeepSeek-V3, section 2.1.2).

Each seed has three runs that differ only in the balancing method. `balance` trains on endless synthetic text, on which
the loss falls smoothly. `balance-worked` trains on the families' worked solutions, on which the loss falls in sudden
drops. In `balance-worked`, runs that differ only by rounding differ by several percent in loss, so a difference of half
a percent is not measurable.
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
from rorqual.lab.balance_report import (
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
"""Number of held-out tokens on which load and loss are measured."""


class Balancing(Experiment):
    """Base class of experiments that compare load balance and loss of three arms on held-out tokens.

    The model is the quickstart's model without its MTP module: two layers of 16 routed experts, with two experts per token.
    """

    claim = (
        "a bias on the router's scores that affects only the choice of experts balances their load and costs no quality. "
        f"The excess load is at most {THIRD:.0%} of that without the bias, and the loss less than {HALF_PERCENT:.1%} higher"
    )
    source = "DeepSeek-V3, section 2.1.2 and table 5; Wang et al., 2408.15664"
    gamma: ClassVar[float]
    alpha: ClassVar[float]
    tried: ClassVar[str]
    """A sentence with the values of `gamma` and `alpha` that were tried but not chosen, and with the seeds of these trials."""
    took: ClassVar[tuple[float, float]]
    """Estimated core-seconds of one training run, and of measuring all three runs."""

    @abstractmethod
    def training(self, place: Path, seed: int, share: float) -> Run:
        """Return a training run on the experiment's data. `arm` adds the balancing method."""

    @abstractmethod
    def held_out(self, tokenizer: Tokenizer, seed: int, tokens: int) -> Iterator[TrainBatch]:
        """Yield blocks of held-out tokens, at least `tokens` tokens in total."""

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        arms: list[ExperimentJob] = [
            Train(name=self.folder(arm), estimate=self.took[0] * share, make=partial(self.arm, arm, place, seed, share))
            for arm in ARMS
        ]
        return [*arms, Compute(name=self.measured, estimate=self.took[1] * share, needs=tuple(job.name for job in arms),
                               function=partial(self.measure, seed=seed, tokens=amount(TOKENS, share)))]  # fmt: skip

    def folder(self, arm: Arm) -> str:
        """Return the name of an arm's run in the seed's folder."""
        return f"{self.name}-{arm}"

    @property
    def measured(self) -> str:
        """The name of the job that measures all arms."""
        return f"{self.name}-measure"

    def arm(self, arm: Arm, place: Path, seed: int, share: float) -> Run:
        """Return the training run of an arm, with its balancing method."""
        run = self.training(place, seed, share)
        objectives: tuple[Objective, ...] = (NextToken(),)
        if arm == "aux":
            objectives = (*objectives, AuxBalance(coefficient=self.alpha))
        return run.model_copy(
            update={
                "model": run.model.model_copy(update={"num_nextn_predict_layers": 0}),
                "objectives": objectives,
                "balance": balance.Balance(gamma=self.gamma if arm == "bias" else 0.0),
                "micro_batches": 1,  # the auxiliary loss is per micro-batch, so a step has exactly one micro-batch
            }
        )

    def measure(self, place: Path, *, seed: int, tokens: int) -> dict[str, Any]:
        """Measure all arms on the same held-out tokens. The router biases are not updated.

        `load` [arm][layer][expert] counts the tokens that the expert processed. `loss` [arm][block] is summed over the
        block's tokens in the loss mask, in nats. `trained` [block] is the number of tokens in the block's loss mask.
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
        measurements = [value(place, self.measured) for place in places.values()]
        excess: dict[Arm, list[float]] = {
            arm: [excess_load(measurement["load"][arm]) for measurement in measurements] for arm in ARMS
        }
        third = third_contrast(excess)
        loads = [third, *(load_contrast(arm, excess) for arm in RIVALS)]
        losses: dict[Arm, Contrast] = {arm: loss_contrast(arm, measurements) for arm in RIVALS}
        runs: list[Mapping[Arm, Path]] = [{arm: place / self.folder(arm) for arm in ARMS} for place in places.values()]
        note = (
            f"Router bias: a step of {self.gamma:g} after each update. Auxiliary loss: coefficient {self.alpha:g}. {self.tried} "
            f"{self.said_of_loss()}"
        )
        return self.found(
            places,
            verdict=decide(third, losses),
            words=words(excess, losses, measurements),
            contrasts=(*loads, *losses.values()),
            tables=(arms_table(list(places), excess, measurements, note), experts_table(measurements)),
            charts=(training_chart(runs),),
        )

    @abstractmethod
    def said_of_loss(self) -> str:
        """Return a sentence that states over which tokens the loss is averaged."""


class BalanceExperiment(Balancing):
    """The balance experiment with pretraining on an endless text, in which every token is predicted."""

    name = "balance"
    title = "Balance without an auxiliary loss"
    gamma, alpha = 0.01, 0.01
    tried = "Tried on seed 1: a step of 0.003."
    took = (54.0, 53.0)
    steps: ClassVar[int] = 250

    def training(self, place: Path, seed: int, share: float) -> Run:
        file = place / f"{self.name}.txt"
        steps = amount(self.steps, share)
        if not file.is_file():  # the text depends only on seed and share, so any arm's job may write it
            needed = steps * ROWS * (FULL.row + 1) * 10 // 9 + 10_000  # the data source holds out a tenth of the text
            place.mkdir(parents=True, exist_ok=True)
            write_atomic(file, endless_text(needed, seed).encode())
        return pretrain(data=str(file), steps=steps, rows=ROWS, row=FULL.row, seed=seed)

    def held_out(self, tokenizer: Tokenizer, seed: int, tokens: int) -> Iterator[TrainBatch]:
        blocks = -(-tokens // (ROWS * FULL.row))
        text = endless_text(blocks * ROWS * FULL.row + 2, 1_000_003 * (seed + 1))
        return text_blocks(tokenizer, text, FULL.row, ROWS)

    def said_of_loss(self) -> str:
        return f"Loss: mean over all tokens. The entropy of the text is {entropy():.3f} nats per character."


class BalanceWorked(Balancing):
    """The balance experiment with SFT on worked solutions. Half of the solutions have no thinking, as in the
    training data of the quickstart's teacher."""

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
        return "Loss: mean over the tokens of thinking, answer and end-of-turn."


@torch.no_grad()
def read(model: Decoder, batch: TrainBatch) -> tuple[float, list[Tensor]]:
    """Return two values: the loss, summed over the tokens in the loss mask, and the number of tokens that each expert
    processed in each layer."""
    output = model(batch.tokens, batch.positions, segments=batch.segments)
    at = batch.loss_mask.nonzero(as_tuple=True)
    logprobs = token_logprobs(model.logits(output.hidden[at]), batch.targets[at])
    valid = batch.segments.flatten() >= 0
    counts = [balance.count(routing, valid, routing.scores.shape[-1]) for routing in output.routing]
    return -float(logprobs.double().sum()), counts
