"""Experiments on a model's shape: each part of the claim compares two arms at equal steps, parameters, FLOPs or time.

A part holds if the held-out loss of the rival arm minus that of the favoured arm lies above 0 by both the bootstrap and the t
interval. If the quantity that should be equal differs between the arms by more than the tolerance in any seed, the part has no
verdict. The condition on equality was added after the results were known, but can only change a verdict to open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rorqual.core.records import RunDir
from rorqual.lab.experiment import SHARE, ArmPair, Experiment, Quantity, Readings, by_family, values_in_group_all
from rorqual.lab.job import ExperimentJob, load_evaluation, load_value, run_cost
from rorqual.lab.shapes import ARMS, CONTEXT, DENSE_CLOCK, DENSE_FLOPS, FULL, MOE, MTP, PLAIN_CLOCK, shape_jobs
from rorqual.model.account import account
from rorqual.model.load.run_directory import read_model_config

TOLERANCE: Mapping[str, float] = {
    "active FLOPs": 0.03,
    "parameters": 0.03,
    "steps": 0.0,
    "core-seconds": 0.15,
    "experts per token": 0.03,
}
ShapePart = tuple[str, str, str]
"""(Quantity that is equal in both arms, favoured arm, rival arm)."""
LOSS, RIGHT, CACHE = "held-out loss", "right when made to think", "cache bytes per token"


class ShapeExperiment(Experiment):
    """An experiment on a model's shape. Each of `parts` is (quantity that is equal in the two arms, favoured arm, rival arm).

    With `cache`, the claim also needs a smaller KV cache in the favoured arm of the first part.
    """

    quantities = {
        LOSS: Quantity("nats"),
        RIGHT: SHARE,
        **dict.fromkeys(TOLERANCE, Quantity()),
        CACHE: Quantity(exact=True),
    }
    note = f"FLOPs: a forward pass of the main model with {CONTEXT} attended positions. Cache: two bytes per value. Losses without MTP."

    def __init__(
        self, name: str, title: str, claim: str, source: str, *, parts: Sequence[ShapePart], cache: bool = False
    ) -> None:
        self.name, self.title, self.claim, self.source, self.parts = name, title, claim, source, tuple(parts)
        self.trained = tuple(dict.fromkeys(name for _, *both in self.parts for name in both))
        self.arms = {name: ARMS[name].label for name in self.trained}
        self.wording = {
            LOSS: "the held-out loss",
            CACHE: "the KV cache per token",
            **{name: f"with {label}" for name, label in self.arms.items()},
        }
        compared = [(quantity, *part) for part in self.parts for quantity in (LOSS, RIGHT)]
        compared += [(CACHE, "", *self.parts[0][1:])] * cache
        self.pairs = tuple(
            ArmPair(
                question=f"{quantity}{equal and f', equal {equal}'}: {ARMS[favoured].label}, then {ARMS[rival].label}",
                quantity=quantity,
                a=favoured,
                b=rival,
                claimed=("all",) if quantity != RIGHT else (),
                equal={equal: TOLERANCE[equal]} if quantity == LOSS else {},
            )
            for quantity, equal, favoured, rival in compared
        )

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        return shape_jobs(self.trained, seed, share)

    def read(self, place: Path) -> Readings:
        runs = {name: RunDir(place / name) for name in self.trained}
        sizes = {name: account(read_model_config(run), context=CONTEXT) for name, run in runs.items()}
        single: dict[str, dict[str, float]] = {
            "active FLOPs": {name: size.flops for name, size in sizes.items()},
            "parameters": {name: size.total for name, size in sizes.items()},
            "steps": {name: sum(1 for _ in run.metrics()) for name, run in runs.items()},
            "core-seconds": {name: run_cost(run).core_seconds for name, run in runs.items()},
            CACHE: {name: size.cache_bytes for name, size in sizes.items()},
        }
        return {
            LOSS: {name: values_in_group_all(load_value(place, f"{name}-loss")) for name in runs},
            RIGHT: {name: by_family(load_evaluation(place, f"{name}-on")) for name in runs},
            **{what: {name: values_in_group_all([one]) for name, one in ones.items()} for what, ones in single.items()},
        }


MOE_VS_DENSE = ShapeExperiment(
    name="moe-vs-dense",
    title="A mixture of experts against a dense model",
    claim="a mixture of experts is better than a dense model at equal FLOPs, and also at equal time",
    source="first part: DeepSeekMoE, 2401.06066, section 4.2; nanochat tried the second twice, without success",
    parts=(("active FLOPs", MOE, DENSE_FLOPS), ("core-seconds", MOE, DENSE_CLOCK)),
)
"""The dense model's width is chosen for equal FLOPs per token. The dense model needs less time per FLOP, so for equal time the
dense model is trained for more steps. This number of steps was chosen on other seeds."""
LATENT_VS_FULL = ShapeExperiment(
    name="latent-vs-full",
    title="Latent attention against full attention",
    claim="latent attention has a lower loss than multi-head attention, with a smaller KV cache",
    source="DeepSeek-V2, 2405.04434, section 2.1 and appendix D.2",
    parts=(("parameters", MOE, FULL),),
    cache=True,
)
"""The rival, multi-head attention, has as many heads as the latent attention and about as many parameters."""
MULTI_TOKEN_PREDICTION = ShapeExperiment(
    name="mtp",
    title="Multi-token prediction as a training signal",
    claim="predicting one more token makes the main model better, at equal steps and at equal time",
    source="first part: DeepSeek-V3, 2412.19437, table 4",
    parts=(("steps", MTP, MOE), ("core-seconds", MTP, PLAIN_CLOCK)),
)
"""Every measurement is made without the MTP module. An MTP module makes a training step more expensive, so for equal time the model
without an MTP module is trained for more steps."""
