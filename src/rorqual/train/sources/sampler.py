"""Sample from the trained model with the run's rollout engine."""

from __future__ import annotations

from collections.abc import Sequence

from rorqual.core.errors import ConfigError
from rorqual.engine.engine import Engine
from rorqual.engine.request import Completion, Request
from rorqual.engine.rollout_engine import InlineRolloutEngine, RolloutEngine, gather
from rorqual.ops.backends import REFERENCE, TORCH, TORCH_INVARIANT, Backend
from rorqual.train.sources.base import Materials


def _sampler_backend(ops: Backend) -> str:
    """Return the name of the sampler's backend: the trainer's, or `torch-invariant` if the trainer uses `reference` or `torch`."""
    return TORCH_INVARIANT.name if ops.name in (REFERENCE.name, TORCH.name) else ops.name


class RolloutSampler:
    """A client of the rollout engine. It sends the weights of each step and checks the returned samples.

    A sample may be at most `max_age` policy versions old. With `record_kept`, each sample must
    contain the tokens that top-p and top-k allowed at each position.
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
                backend=_sampler_backend(materials.model.ops),
            )
        )
        self.version = self.engine.version
        """The policy version of the trainer's current weights."""

    def update(self) -> None:
        """Increment the policy version and send the trainer's current weights to the engine."""
        self.version += 1
        self.engine.update(self.model, self.version)

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Sample completions for each request.

        Raises ConfigError if training needs expert choices or `kept` (the tokens that top-p and top-k allowed), and a
        completion has none.
        """
        rows = gather(self.engine, requests, version=self.version, max_age=self.max_age)
        routes = any(ffn.experts_per_token() for ffn in self.model.config.ffns)
        for completion in (completion for row in rows for completion in row):
            for name, missing in (
                ("experts", routes and completion.experts is None),
                ("record of allowed tokens", self.record_kept and completion.kept is None),
            ):
                if missing:
                    raise ConfigError(
                        f"the samples have no {name}, but training needs this data",
                        where="rollout engine",
                        remedy="Configure the engine to record this data. With rorqual serve, set record_kept=true to record allowed tokens.",
                    )
        return rows

    def age(self, completion: Completion) -> int:
        """Return the policy age of a completion: the trainer's policy version minus the version that sampled it."""
        return self.version - completion.policy_version
