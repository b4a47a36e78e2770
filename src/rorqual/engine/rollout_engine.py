"""Who samples for a trainer: one protocol for the engine on the trained tensors, for an address, and for a user's own."""

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
"""How often a sample is asked for that an engine does not hand over."""


class RolloutEngine(Protocol):
    """Samples with the newest weights that it was given.

    An answer depends on the weights and on its request alone (prompt, parameters, seed, number of the sample), so that another engine, or a
    second try, gives the same one.
    """

    @property
    def version(self) -> int:
        """Of the weights that it samples with."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield each sample of each request as it finishes, in any order. `Completion.request` and `.sample` say which it is, and
        `.policy_version` which weights drew it. A sample that was lost may be left out: it is asked for again."""

    def update(self, weights: Decoder, version: int) -> None:
        """Sample with `weights` from now on; `version` is greater than any before."""


class InlineRolloutEngine:
    """An `Engine` on the trained tensors: it sees their changes by itself. It works in the trainer's thread, so that what it yields is there
    when all samples are."""

    def __init__(self, engine: Engine, version: int = 0) -> None:
        self.engine, self.version = engine, version

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        version = self.version  # whoever reads may update between two samples
        for number, samples in enumerate(self.engine.generate(requests)):
            for sample, found in enumerate(samples):
                yield replace(found, request=number, sample=sample, policy_version=version)

    def update(self, weights: Decoder, version: int) -> None:
        if weights is not self.engine.model:
            self.engine.load_weights(weights)
        self.version = version


def gather(
    engine: RolloutEngine, requests: Sequence[Request], *, version: int, max_age: int = 0
) -> list[list[Completion]]:
    """For each request its samples, in order; what the engine lost is asked for again, by the seed that makes it the same sample.

    `version`: of the trainer's weights. A `NumericsError` refuses samples of newer weights, of weights that are more than `max_age` versions
    older, samples that nobody asked for, and an engine that loses a sample `TRIES` times.
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
                    f"it handed over sample {one.sample} of request {one.request}, for which nobody asked",
                    where="rollout engine",
                    remedy="Number requests, and the samples of each, from 0, in the order that they were given.",
                )
            found[place] = replace(one, request=place[0], sample=place[1])
        lost = [place for place in places if place not in found]
        if not lost:
            return [[found[number, sample] for sample in range(r.params.n)] for number, r in enumerate(requests)]
        asked = [alone(requests[number], sample) for number, sample in lost]
        names = {(again, 0): place for again, place in enumerate(lost)}
    raise NumericsError(
        f"of {len(places)} samples {len(lost)} were lost, {TRIES} times over",
        where="rollout engine",
        remedy="See what the engine says of itself; the run goes on from its last checkpoint when the command is repeated.",
    )


def alone(request: Request, sample: int) -> Request:
    """A request for one sample of `request`: the very one that has that number there."""
    return replace(request, params=replace(request.params, seed=sample_seed(request.params.seed, sample), n=1))


def _check_version(had: int, version: int, max_age: int) -> None:
    if had > version:
        raise NumericsError(
            f"it sampled with weights of version {had}, and the trainer is at {version}",
            where="rollout engine",
            remedy="Another trainer updates this engine: give each an engine of its own.",
        )
    if version - had > max_age:
        raise NumericsError(
            f"it sampled with weights of version {had}; the trainer is at {version}, and max_age={max_age} allows none below "
            f"{version - max_age}",
            where="rollout engine",
            remedy="It was started anew, or did not take an update: repeat the command, which goes on from the last checkpoint.",
        )
