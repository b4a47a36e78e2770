"""Experiments on a model's shape: each part of the claim compares two arms at equal steps, parameters, FLOPs or time.

A part holds if the held-out loss of the rival minus that of the favoured arm lies above 0 by both intervals. If the compared amounts
differ more than the tolerance in any seed, the part has no verdict. This condition was added after the results were known; it can only
change a verdict to open.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from rorqual.core.records import RunDir
from rorqual.lab.charts import Bars, Curves, Readings
from rorqual.lab.experiment import SHARE, ArmPair, Experiment, Quantity, by_family, in_order
from rorqual.lab.job import ExperimentJob, evaluation, run_cost, value
from rorqual.lab.shapes import ARMS, CONTEXT, shape_jobs
from rorqual.model.account import account
from rorqual.model.load.run_directory import read_model_config

TOLERANCE: Mapping[str, float] = {
    "active FLOPs": 0.03,
    "parameters": 0.03,
    "steps": 0.0,
    "core-seconds": 0.15,
    "experts per token": 0.03,
}
LOSS, RIGHT, CACHE = "held-out loss", "right when made to think", "cache bytes per token"


class ShapeExperiment(Experiment):
    """Base class of experiments on a model's shape. Each of `parts` is (what is equal, the favoured arm, the rival)."""

    parts: ClassVar[tuple[tuple[str, str, str], ...]]
    quantities = {LOSS: Quantity("nats"), RIGHT: SHARE, **dict.fromkeys((*TOLERANCE, CACHE), Quantity())}
    note = f"FLOPs: a forward pass of the main model with {CONTEXT} attended positions. Cache: two bytes per value. Losses without MTP."

    def __init__(self) -> None:
        self.trained = tuple(dict.fromkeys(name for _, *both in self.parts for name in both))
        self.arms = {name: ARMS[name].label for name in self.trained}
        self.pairs = tuple(
            ArmPair(
                question=f"{quantity}, equal {equal}: {ARMS[favoured].label}, then {ARMS[rival].label}",
                quantity=quantity,
                a=favoured,
                b=rival,
                claimed=("all",) if quantity == LOSS else (),
                equal={equal: TOLERANCE[equal]} if quantity == LOSS else {},
            )
            for equal, favoured, rival in self.parts
            for quantity in (LOSS, RIGHT)
        )
        lines = {label: ((name,), "loss/next_token") for name, label in self.arms.items()}
        self.charts = (Curves("curves", "Loss on new problems", "nats per token", lines), Bars(RIGHT))

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
            LOSS: {name: in_order(value(place, f"{name}-loss")) for name in runs},
            RIGHT: {name: by_family(evaluation(place, f"{name}-on")) for name in runs},
            **{what: {name: in_order([one]) for name, one in ones.items()} for what, ones in single.items()},
        }
