"""Where batches come from. Batches are a function of seed, step and weights: there is no cursor that a resume could lose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rorqual.core.config import Kind, RowLength
from rorqual.data.chat import ChatFormat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.rollout_engine import RolloutEngine
from rorqual.model.decoder import Decoder
from rorqual.train.batch import TrainBatch


@dataclass(frozen=True)
class Materials:
    """What a source may use: the model (for rollouts), tokenizer, chat format, seed, and worker threads.

    `rollout_engine`: who samples, where that is not an engine on the model itself."""

    model: Decoder
    tokenizer: Tokenizer
    chat: ChatFormat
    seed: int
    threads: int
    rollout_engine: RolloutEngine | None = None


@dataclass
class Step:
    """One step's work: a batch for each optimizer update, and what to record.

    `fresh`: the batches were sampled for this step, so that log-probabilities of what these very weights sampled must agree before the first
    update; `unlearned` was sampled too, teaches nothing, and is checked with them. `notes` are said to the user. `trace`: lines for
    `rollouts.jsonl`, which `rorqual trace` shows.
    """

    batches: list[TrainBatch]
    metrics: dict[str, Any] = field(default_factory=dict)
    fresh: bool = False
    unlearned: list[TrainBatch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    trace: list[dict[str, Any]] = field(default_factory=list)


class Source(ABC):
    """Gives each step its work."""

    versions: dict[str, int] = {}
    """Of the families whose problems it draws."""

    @abstractmethod
    def step(self, step: int) -> Step:
        """The work of step `step`, from 0."""


class SourceConfig(Kind):
    """Base of the sources. `row`: tokens in a row of a batch."""

    row: RowLength

    @property
    def samples_itself(self) -> bool:
        """Whether it asks a rollout engine for samples of the trained model."""
        return False

    def build(self, materials: Materials) -> Source:
        """The source; bad data is refused here, before anything is written."""
        raise NotImplementedError

    def gives(self) -> frozenset[str]:
        """Optional fields of a batch that its batches hold."""
        return frozenset()

    def texts(self) -> Iterator[str]:
        """Text to learn a tokenizer from (`start.tokenizer=bpe:SIZE`)."""
        raise NotImplementedError
