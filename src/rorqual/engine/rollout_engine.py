"""Rollout engines, which sample for a trainer: in its process, at a remote endpoint, or of a user's own class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from rorqual.core.errors import NumericsError
from rorqual.engine.engine import Engine
from rorqual.engine.request import Completion, Request
from rorqual.engine.seeds import sample_seed
from rorqual.model import Decoder

TRIES = 3
"""Attempts to get a sample that a rollout engine does not return."""


class RolloutEngine(Protocol):
    """Samples with the newest weights that it was given.

    A completion must depend only on the weights and its request: prompt, sampling parameters, seed and sample index.
    Then another engine, or a second attempt, returns the same one.
    """

    @property
    def version(self) -> int:
        """The version of the weights that it samples with."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield the samples of all requests as they finish, in any order.

        `Completion.request` and `.sample` identify a sample, and `.policy_version` is the version of its weights.
        The engine may omit a lost sample: the trainer requests it again.
        """

    def update(self, weights: Decoder, version: int) -> None:
        """Sample with `weights` from now on. `version` is greater than all earlier ones."""


class InlineRolloutEngine:
    """An `Engine` that shares the trained tensors and so sees each update without a copy.

    It works in the trainer's thread and yields nothing before all samples are finished.
    """

    def __init__(self, engine: Engine, version: int = 0) -> None:
        self.engine, self.version = engine, version

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Run all requests, then yield their samples in order."""
        version = self.version  # the caller may update the weights between two samples
        for number, samples in enumerate(self.engine.generate(requests)):
            for sample, found in enumerate(samples):
                yield replace(found, request=number, sample=sample, policy_version=version)

    def update(self, weights: Decoder, version: int) -> None:
        """Set the version. Weights of another model object are copied into the engine's model."""
        if weights is not self.engine.model:
            self.engine.load_weights(weights)
        self.version = version


def gather(
    engine: RolloutEngine, requests: Sequence[Request], *, version: int, max_age: int = 0
) -> list[list[Completion]]:
    """Return the samples of each request, in order. Lost samples are requested again, with the seed that reproduces
    them.

    `version` is that of the trainer's weights. Raises NumericsError for samples of newer weights or of weights more
    than `max_age` versions older. It also refuses samples that were not requested, and an engine that loses a sample
    `TRIES` times.
    """
    found: dict[tuple[int, int], Completion] = {}
    places = [(number, sample) for number, request in enumerate(requests) for sample in range(request.params.n)]
    asked, names = list(requests), {place: place for place in places}
    for _ in range(TRIES):
        for one in engine.generate(asked):
            _check_version(one.policy_version, version, max_age)
            place = names.get((one.request, one.sample))
            if place is None:
                raise NumericsError(
                    f"it returned sample {one.sample} of request {one.request}, which was not requested",
                    where="rollout engine",
                    remedy="Number the requests, and the samples of each request, from 0 in the order given.",
                )
            found[place] = replace(one, request=place[0], sample=place[1])
        lost = [place for place in places if place not in found]
        if not lost:
            return [[found[number, sample] for sample in range(r.params.n)] for number, r in enumerate(requests)]
        asked = [alone(requests[number], sample) for number, sample in lost]
        names = {(again, 0): place for again, place in enumerate(lost)}
    raise NumericsError(
        f"{len(lost)} of {len(places)} samples are missing after {TRIES} attempts",
        where="rollout engine",
        remedy="Check the engine's log, then repeat the command: the run resumes from its last checkpoint.",
    )


def alone(request: Request, sample: int) -> Request:
    """Return a request that reproduces sample number `sample` of `request` alone."""
    return replace(request, params=replace(request.params, seed=sample_seed(request.params.seed, sample), n=1))


def _check_version(had: int, version: int, max_age: int) -> None:
    if had > version:
        raise NumericsError(
            f"it sampled with weights of version {had}, newer than the trainer's version {version}",
            where="rollout engine",
            remedy="Another trainer updates this engine: give each trainer its own.",
        )
    if version - had > max_age:
        raise NumericsError(
            f"it sampled with weights of version {had}; the trainer is at {version}, and max_age={max_age} allows "
            f"version {version - max_age} or newer",
            where="rollout engine",
            remedy="The engine restarted or missed an update: repeat the command, which resumes from the last checkpoint.",
        )
