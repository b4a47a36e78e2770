"""Rollout engines, which generate samples for a trainer: their interface, and an engine in the trainer's process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

from rorqual.core.errors import NumericsError
from rorqual.engine.engine import Engine
from rorqual.engine.request import Completion, Request
from rorqual.engine.seeds import sample_seed
from rorqual.model import Decoder

Put = Callable[[Completion], None]
TRIES = 3
"""Maximum number of times that the trainer requests the same sample from a rollout engine."""


class RolloutEngine(Protocol):
    """An engine that generates samples for a trainer, with the weights of the last call of `update`.

    A completion must depend only on the weights and its request: prompt, sampling parameters, seed and sample index. A repeated
    request therefore returns the same completion, even from another engine.
    """

    @property
    def version(self) -> int:
        """Version of the weights with which the engine samples."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield the samples of all requests as they finish, in any order.

        `Completion.request` and `Completion.sample` identify a sample, and `Completion.policy_version` is the version of the
        weights that generated the sample. The engine may leave out lost samples, which the trainer then requests again.
        """

    def update(self, weights: Decoder, version: int) -> None:
        """Sample with `weights` from now on. `version` is greater than the versions of all earlier weights."""


class InlineRolloutEngine:
    """A rollout engine in the trainer's process. The `Engine` shares the trained tensors, so weight updates need no copy.

    Shared weights must not change until `generate` has yielded all samples.
    """

    def __init__(self, engine: Engine, version: int = 0) -> None:
        self.engine, self.version = engine, version

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield samples as they finish. Closing the iterator stops the engine after the engine's current step."""
        version = self.version  # the caller may update the weights between two samples

        def collect_samples(put: Put, closed: threading.Event) -> None:
            def arrived(number: int, sample: int, completion: Completion) -> None:
                put(replace(completion, request=number, sample=sample, policy_version=version))

            self.engine.generate(requests, arrived=arrived, stop=closed)

        return iterate_completions(collect_samples)

    def update(self, weights: Decoder, version: int) -> None:
        """Set the version of the engine's weights to `version`. If `weights` is not the engine's own model, copy the tensors of
        `weights` into the engine's model."""
        if weights is not self.engine.model:
            self.engine.load_weights(weights)
        else:
            self.engine.weights_changed()
        self.version = version


def iterate_completions(collect: Callable[[Put, threading.Event], object]) -> Iterator[Completion]:
    """Run `collect(put, closed)` in a new thread, and yield the samples that `collect` passes to `put`.

    If `collect` raises an error, the iterator raises this error after the last sample. Closing the iterator sets `closed` and
    waits for `collect` to return.
    """
    finished, closed = queue.SimpleQueue[Completion | None](), threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="rollout") as pool:
        collecting = pool.submit(collect, finished.put, closed)
        collecting.add_done_callback(lambda _: finished.put(None))
        try:
            while (completion := finished.get()) is not None:
                yield completion
            collecting.result()
        finally:
            closed.set()


def gather_completions(
    engine: RolloutEngine, requests: Sequence[Request], *, version: int, max_age: int = 0
) -> list[list[Completion]]:
    """Generate all samples of the requests, and return the samples in request order. Missing samples are requested again with
    the same seed.

    `version` is the version of the trainer's weights. Raises NumericsError if a sample was generated with weights that are
    newer than `version`, or more than `max_age` versions older than `version`. Raises NumericsError for a sample that was not
    requested, and for samples that are missing after `TRIES` attempts.
    """
    completions: dict[tuple[int, int], Completion] = {}
    places = [(number, sample) for number, request in enumerate(requests) for sample in range(request.params.n)]
    pending, place_of = list(requests), {place: place for place in places}
    for _ in range(TRIES):
        for completion in engine.generate(pending):
            _check_version(completion.policy_version, version, max_age)
            place = place_of.get((completion.request, completion.sample))
            if place is None:
                raise NumericsError(
                    f"the engine returned sample {completion.sample} of request {completion.request}, which was not requested",
                    where="rollout engine",
                    remedy="Number the requests, and the samples of each request, from 0 in the order given.",
                )
            completions[place] = replace(completion, request=place[0], sample=place[1])
        missing = [place for place in places if place not in completions]
        if not missing:
            return [[completions[number, sample] for sample in range(r.params.n)] for number, r in enumerate(requests)]
        pending = [single_sample_request(requests[number], sample) for number, sample in missing]
        place_of = {(again, 0): place for again, place in enumerate(missing)}
    raise NumericsError(
        f"{len(missing)} of {len(places)} samples are missing after {TRIES} attempts",
        where="rollout engine",
        remedy="Check the engine's log, then repeat the command. The run resumes from its last checkpoint.",
    )


def single_sample_request(request: Request, sample: int) -> Request:
    """Return a request for a single sample that reproduces sample number `sample` of `request`."""
    return replace(request, params=replace(request.params, seed=sample_seed(request.params.seed, sample), n=1))


def _check_version(sampled_version: int, version: int, max_age: int) -> None:
    if sampled_version > version:
        raise NumericsError(
            f"the engine sampled with weights of version {sampled_version}, newer than the trainer's version {version}",
            where="rollout engine",
            remedy="Another trainer updates this engine. Give each trainer its own engine.",
        )
    if version - sampled_version > max_age:
        raise NumericsError(
            f"the engine sampled with weights of version {sampled_version}; the trainer is at {version}, and max_age={max_age} allows "
            f"version {version - max_age} or newer",
            where="rollout engine",
            remedy="The engine restarted or missed an update. Repeat the command, which resumes from the last checkpoint.",
        )
