"""Base classes of the sources. Batches depend only on seed, step and weights, so a resumed run needs no saved data position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rorqual.core.config import KindConfig, RowLength
from rorqual.data.chat import ChatFormat
from rorqual.data.stream import BatchStream
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.rollout_engine import RolloutEngine
from rorqual.model.decoder import Decoder
from rorqual.train.batch import TrainBatch


@dataclass(frozen=True)
class SourceInputs:
    """The objects from which a source is built.

    `model` is the trained model, and `threads` the number of worker threads. `rollout_engine` samples completions. If
    `rollout_engine` is None, the source samples directly from `model`.
    """

    model: Decoder
    tokenizer: Tokenizer
    chat: ChatFormat
    seed: int
    threads: int
    rollout_engine: RolloutEngine | None = None


@dataclass
class StepBatches:
    """The data of one step: one batch per optimizer update, and metrics.

    `fresh` is True if the batches were sampled for this step. Before the first update of a fresh step, the loop checks that
    trainer and sampler agree on samples from the current weights. `unlearned` holds samples on which the loop compares trainer
    and sampler but does not train. `notes` are messages for the user. `trace` holds the lines for `rollouts.jsonl`, which
    `rorqual trace` shows.
    """

    batches: list[TrainBatch]
    metrics: dict[str, Any] = field(default_factory=dict)
    fresh: bool = False
    unlearned: list[TrainBatch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    trace: list[dict[str, Any]] = field(default_factory=list)


class Source(ABC):
    """A source of training batches."""

    versions: dict[str, int] = {}
    """The version of each generated problem family that the source uses."""
    frozen_models: dict[str, str] = {}
    """The SHA-256 of the checkpoint of each frozen model that the source reads, by the name of its setting."""
    prompts: Sequence[str] = ()
    """Examples of the generated problems that the source trains on. Prompts from a file are left out, because these prompts may
    be private."""

    @abstractmethod
    def step(self, step: int) -> StepBatches:
        """Return the batches of step `step`, counted from 0."""


class StreamSource(Source):
    """A source that reads its batches from a stream. `notes` are messages for the user, returned with the first step."""

    def __init__(self, stream: BatchStream, notes: Sequence[str] = ()) -> None:
        self.stream, self.notes = stream, list(notes)

    def step(self, step: int) -> StepBatches:
        notes, self.notes = self.notes, []
        return StepBatches([TrainBatch.from_packed(self.stream.batch(step))], notes=notes)


class SourceConfig(KindConfig):
    """Base class of the sources' configs. `row` is the number of tokens per row of a batch."""

    row: RowLength

    @property
    def uses_rollout_engine(self) -> bool:
        """Whether the source samples from the trained model through a rollout engine."""
        return False

    def build(self, materials: SourceInputs) -> Source:
        """Build the source. If the data is invalid, raises an error before the run writes anything."""
        raise NotImplementedError

    def provided_batch_fields(self) -> frozenset[str]:
        """Return the optional fields of `TrainBatch` that the source's batches contain."""
        return frozenset()

    def texts(self) -> Iterator[str]:
        """Yield text to train a tokenizer on (`start.tokenizer=bpe:SIZE`)."""
        raise NotImplementedError
