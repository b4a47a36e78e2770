"""Samples the trained model with the run's rollout engine."""

from __future__ import annotations

from collections.abc import Sequence

from rorqual.core.errors import ConfigError
from rorqual.engine.engine import Engine
from rorqual.engine.request import Completion, Request
from rorqual.engine.rollout_engine import InlineRolloutEngine, RolloutEngine, gather
from rorqual.ops.backends import REFERENCE, TORCH, TORCH_INVARIANT, Backend
from rorqual.train.sources.base import Materials


def _sampled_by(ops: Backend) -> str:
    """Return the engine's default backend, unless the run names one other than `reference` and `torch`."""
    return TORCH_INVARIANT.name if ops.name in (REFERENCE.name, TORCH.name) else ops.name


class RolloutSampler:
    """Sends the weights of each step to the rollout engine, and checks its samples.

    `max_age` is the most updates by which the weights of a sample may be older. With `record_kept` each sample must contain
    the token sets that top-p and top-k left.
    """

    def __init__(self, materials: Materials, *, max_age: int = 0, record_kept: bool = False) -> None:
        self.model, self.max_age, self.record_kept = materials.model, max_age, record_kept
        self.engine: RolloutEngine = materials.rollout_engine or InlineRolloutEngine(
            Engine.of(
                materials.model,
                materials.tokenizer,
                materials.chat,
                threads=materials.threads,
                record_kept=record_kept,
                backend=_sampled_by(materials.model.ops),
            )
        )
        self.version = self.engine.version
        """The version of the trainer's weights."""

    def update(self) -> None:
        """Give the current weights a new version and send them to the engine."""
        self.version += 1
        self.engine.update(self.model, self.version)

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Return the samples of each request. Raises ConfigError if they lack data that training needs."""
        rows = gather(self.engine, requests, version=self.version, max_age=self.max_age)
        routes = any(ffn.experts_per_token() for ffn in self.model.config.ffns)
        for one in (one for row in rows for one in row):
            for name, missing in (
                ("experts", routes and one.experts is None),
                ("kept sets", self.record_kept and one.kept is None),
            ):
                if missing:
                    raise ConfigError(
                        f"the samples have no {name}, which training replays",
                        where="rollout engine",
                        remedy="Configure the engine to record them; for kept sets, start rorqual serve with record_kept=true.",
                    )
        return rows

    def age(self, one: Completion) -> int:
        """Return the number of updates between the weights that sampled `one` and the trainer's."""
        return self.version - one.policy_version
