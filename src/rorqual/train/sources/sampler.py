"""The trained model's samples, from whichever rollout engine a run has."""

from __future__ import annotations

from collections.abc import Sequence

from rorqual.core.errors import ConfigError
from rorqual.engine.engine import Engine
from rorqual.engine.request import Completion, Request
from rorqual.engine.rollout_engine import InlineRolloutEngine, RolloutEngine, gather
from rorqual.ops.backends import REFERENCE, TORCH, TORCH_INVARIANT, Backend
from rorqual.train.sources.base import Materials


def _sampled_by(ops: Backend) -> str:
    """The engine's own backend, unless a run names one that is neither `reference` nor `torch`."""
    return TORCH_INVARIANT.name if ops.name in (REFERENCE.name, TORCH.name) else ops.name


class RolloutSampler:
    """Gives the engine each step's weights, and checks what it samples with them.

    `max_age`: how many updates older the weights of a sample may be. `record_kept`: each sample must bring the sets that top-p and top-k left.
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
        """Of the trainer's weights."""

    def update(self) -> None:
        """Name the weights as they are now, and hand them to the engine."""
        self.version += 1
        self.engine.update(self.model, self.version)

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """For each request its samples; a `ConfigError` where they lack what training needs of them."""
        rows = gather(self.engine, requests, version=self.version, max_age=self.max_age)
        routes = any(ffn.experts_per_token() for ffn in self.model.config.ffns)
        for one in (one for row in rows for one in row):
            for name, missing in (
                ("experts", routes and one.experts is None),
                ("kept sets", self.record_kept and one.kept is None),
            ):
                if missing:
                    raise ConfigError(
                        f"its samples come without {name}, which training replays",
                        where="rollout engine",
                        remedy="Let it record them; rorqual serve records kept sets with record_kept=true.",
                    )
        return rows

    def age(self, one: Completion) -> int:
        """How many updates lie between the weights that drew a sample and the trainer's."""
        return self.version - one.policy_version
