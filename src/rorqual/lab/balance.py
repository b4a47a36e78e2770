"""Test whether load balancing with a router bias costs quality (DeepSeek-V3, section 2.1.2).

Each seed has three runs that differ only in the balancing method. The experiment `balance` trains on endless synthetic text, on
which the loss falls smoothly. The experiment `balance-worked` trains on the families' worked solutions, on which the loss falls in
sudden drops. In `balance-worked`, runs that differ only by rounding differ by several percent in loss, so a difference of half
a percent is not measurable.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from rorqual.core.records import write_atomic
from rorqual.data.chat import ChatFormat
from rorqual.data.pack import TrainingSample
from rorqual.lab.balance_data import endless_text, text_windows, worked_samples
from rorqual.lab.experiment import ArmPair, Experiment, Quantity, Readings, scale_amount, values_in_group_all
from rorqual.lab.held_out import load_trained, run_on_sample_blocks
from rorqual.lab.job import ComputeJob, ExperimentJob, TrainJob, load_value
from rorqual.model.decoder import Decoder
from rorqual.recipes.pretrain import pretrain
from rorqual.recipes.quickstart import FULL, TASK
from rorqual.recipes.sft import sft
from rorqual.train import balance
from rorqual.train.objectives import AuxBalance, NextToken, Objective
from rorqual.train.run import Run

ROWS = 32
TOKENS = 1_000_000
"""Number of held-out tokens on which expert load and loss are measured."""
NONE, BIAS, AUX, THIRD = "none", "bias", "aux", "third"
EXCESS, LOSS, SCALED = "largest load over mean less one", "held-out loss, nats", "held-out loss over that of the first"
HALF_PERCENT = 0.005


class BalancingExperiment(Experiment):
    """Base class of experiments that compare the load balance and the loss of three arms on held-out tokens.

    The model is the quickstart's model without its MTP module: two layers of 16 routed experts, with two experts per token.
    """

    claim = (
        "a bias on the router's scores that affects only the choice of experts balances their load and costs no quality. "
        f"The excess load is at most {1 / 3:.0%} of that without the bias, and the loss less than {HALF_PERCENT:.1%} higher"
    )
    source = "DeepSeek-V3, section 2.1.2 and table 5; Wang et al., 2408.15664"
    arms = {NONE: "nothing", BIAS: "router bias", AUX: "auxiliary loss"}
    quantities = {EXCESS: Quantity("ratio"), LOSS: Quantity("nats")}
    pairs = (
        ArmPair(question=f"{EXCESS}: a third of that with nothing, then router bias", quantity=EXCESS, a=THIRD, b=BIAS,
             claimed=("all",), side="below"),
        *(ArmPair(question=f"{EXCESS}: {label}, then router bias", quantity=EXCESS, a=arm, b=BIAS, groups=("all",))
          for arm, label in ((NONE, "nothing"), (AUX, "auxiliary loss"))),
        *(ArmPair(question=f"{SCALED}: {label}, then router bias", quantity=LOSS, a=arm, b=BIAS, relative=True, claimed=("all",),
               bound=HALF_PERCENT, side="below")
          for arm, label in ((NONE, "nothing"), (AUX, "auxiliary loss"))),
    )  # fmt: skip
    wording = {
        EXCESS: "the excess load",
        LOSS: "the held-out loss",
        THIRD: "a third of that without balancing",
        NONE: "without balancing",
        BIAS: "with the router bias",
        AUX: "with the auxiliary loss",
    }
    gamma: ClassVar[float]
    alpha: ClassVar[float]
    """`gamma` is the size of the change of the router bias at each update, and `alpha` is the coefficient of the auxiliary loss."""
    took: ClassVar[tuple[float, float]]
    """Estimated core-seconds of one training run, and of measuring all three runs."""

    @abstractmethod
    def training_run(self, place: Path, seed: int, share: float) -> Run:
        """Return a training run on the experiment's data, without load balancing. `BalancingExperiment.arm_run` adds the balancing method."""

    @abstractmethod
    def held_out_samples(self, chat: ChatFormat, seed: int, tokens: int) -> Iterator[TrainingSample]:
        """Yield held-out samples with at least about `tokens` tokens in total."""

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        arms: list[ExperimentJob] = [
            TrainJob(
                name=self.arm_run_name(arm),
                estimate=self.took[0] * share,
                make=partial(self.arm_run, arm, place, seed, share),
            )
            for arm in self.arms
        ]
        return [*arms, ComputeJob(name=self.measure_job_name, estimate=self.took[1] * share, needs=tuple(job.name for job in arms),
                               function=partial(self.measure_arms, seed=seed, tokens=scale_amount(TOKENS, share)))]  # fmt: skip

    def arm_run_name(self, arm: str) -> str:
        """Return the name of an arm's run in the seed's folder."""
        return f"{self.name}-{arm}"

    @property
    def measure_job_name(self) -> str:
        """The name of the job that measures the loads and losses of all arms."""
        return f"{self.name}-measure"

    def arm_run(self, arm: str, place: Path, seed: int, share: float) -> Run:
        """Return the training run of an arm, with its balancing method."""
        run = self.training_run(place, seed, share)
        objectives: tuple[Objective, ...] = (NextToken(),)
        if arm == AUX:
            objectives = (*objectives, AuxBalance(coefficient=self.alpha))
        return run.model_copy(
            update={
                "model": run.model.model_copy(update={"num_nextn_predict_layers": 0}),
                "objectives": objectives,
                "balance": balance.BalanceConfig(gamma=self.gamma if arm == BIAS else 0.0),
                "micro_batches": 1,  # the auxiliary loss is per micro-batch, so a step has exactly one micro-batch
            }
        )

    def measure_arms(self, place: Path, *, seed: int, tokens: int) -> dict[str, Any]:
        """Measure all arms on the same held-out tokens. The router biases are not updated.

        `load` [arm][layer][expert] counts the tokens that the expert processed. `loss` [arm][block] is summed over the
        block's tokens in the loss mask, in nats. `trained` [block] is the number of tokens in the block's loss mask.
        """
        models = {arm: load_trained(place / self.arm_run_name(arm)) for arm in self.arms}
        load: dict[str, list[Tensor]] = {}
        loss: dict[str, list[float]] = {arm: [] for arm in models}
        trained: list[int] = []
        seen, samples = 0, self.held_out_samples(models[NONE][1], seed, tokens)
        while seen < tokens and (part := list(islice(samples, ROWS))):
            seen += sum(map(len, part))
            trained.append(sum(sample.n_trained_tokens for sample in part))
            for arm, (model, _) in models.items():
                nats, counts = measure_loss_and_loads(model, part)
                loss[arm].append(nats)
                load[arm] = [a + b for a, b in zip(load[arm], counts, strict=True)] if arm in load else counts
        served = {arm: [layer.tolist() for layer in layers] for arm, layers in load.items()}
        return {"tokens": seen, "load": served, "loss": loss, "trained": trained}

    def runs_of(self, arm: str) -> tuple[str, ...]:
        return (self.arm_run_name(NONE if arm == THIRD else arm),)

    def read(self, place: Path) -> Readings:
        measured = load_value(place, self.measure_job_name)
        excess = {arm: values_in_group_all([excess_load(measured["load"][arm])]) for arm in self.arms}
        excess[THIRD] = values_in_group_all([excess_load(measured["load"][NONE]) / 3])
        scale = len(measured["trained"]) / sum(measured["trained"])
        losses = {arm: values_in_group_all([nats * scale for nats in measured["loss"][arm]]) for arm in self.arms}
        return {EXCESS: excess, LOSS: losses}


class TextBalanceExperiment(BalancingExperiment):
    """The balance experiment with pretraining on an endless text, in which every token
    is predicted. On seed 1, `gamma` of 0.003 was also tried."""

    name = "balance"
    title = "Balance without an auxiliary loss"
    gamma, alpha = 0.01, 0.01
    took = (54.0, 53.0)
    steps: ClassVar[int] = 250

    def training_run(self, place: Path, seed: int, share: float) -> Run:
        file = place / f"{self.name}.txt"
        steps = scale_amount(self.steps, share)
        if not file.is_file():  # the text depends only on seed and share, so any arm's job may write it
            needed = steps * ROWS * (FULL.row + 1) * 10 // 9 + 10_000  # the data source holds out a tenth of the text
            place.mkdir(parents=True, exist_ok=True)
            write_atomic(file, endless_text(needed, seed).encode())
        return pretrain(data=str(file), steps=steps, rows=ROWS, row=FULL.row, seed=seed)

    def held_out_samples(self, chat: ChatFormat, seed: int, tokens: int) -> Iterator[TrainingSample]:
        return text_windows(chat.tokenizer, endless_text(tokens + ROWS * FULL.row, 1_000_003 * (seed + 1)), FULL.row)


class SolutionBalanceExperiment(BalancingExperiment):
    """The balance experiment with SFT on worked solutions. Half of the solutions have no thinking, as in the
    training data of the quickstart's teacher. On seed 1, `gamma` of 0.01 and of 0.001, and `alpha` of 0.001 were also tried."""

    name = "balance-worked"
    title = "Balance without an auxiliary loss, on worked solutions"
    gamma, alpha = 0.003, 0.01
    took = (66.0, 96.0)
    steps: ClassVar[int] = 300

    def training_run(self, place: Path, seed: int, share: float) -> Run:
        return sft(task=TASK, size=FULL.model, steps=scale_amount(self.steps, share), rows=ROWS, row=FULL.row, think=FULL.think,
                   options={"hard": FULL.sft_hard}, seed=seed)  # fmt: skip

    def held_out_samples(self, chat: ChatFormat, seed: int, tokens: int) -> Iterator[TrainingSample]:
        return worked_samples(chat, seed)


def measure_loss_and_loads(model: Decoder, samples: Sequence[TrainingSample]) -> tuple[float, list[Tensor]]:
    """Return the loss in nats, summed over the tokens in the loss mask, and for each layer the number of tokens that each
    expert processed."""
    [block] = run_on_sample_blocks(model, samples, len(samples))
    valid = block.batch.segments.flatten() >= 0
    counts = [
        balance.count_tokens_per_expert(routing, valid, routing.scores.shape[-1]) for routing in block.output.routing
    ]
    return float(block.losses.sum()), counts


def excess_load(layers: Sequence[Sequence[int]]) -> float:
    """Return the largest expert load divided by the mean expert load, minus 1, averaged over layers. 0 means perfect
    balance."""
    return balance.load_ratio([torch.tensor(layer) for layer in layers]) - 1
