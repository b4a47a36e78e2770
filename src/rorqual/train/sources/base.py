"""The base class of sources. Batches depend on seed, step and weights only, so a resumed run needs no saved cursor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
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
    """What a source may use: the model (for rollouts), tokenizer, chat format, seed, and number of worker threads.

    `rollout_engine` samples; without it an engine runs on the trained model itself.
    """

    model: Decoder
    tokenizer: Tokenizer
    chat: ChatFormat
    seed: int
    threads: int
    rollout_engine: RolloutEngine | None = None


@dataclass
class Step:
    """The work of one step: a batch for each optimizer update, and metrics to record.

    `fresh` says that the batches were sampled for this step. Before the first update, trainer and sampler must then agree on
    the log-probabilities of what the current weights sampled. `unlearned` holds samples that do not train but are checked too.
    `notes` are shown to the user. `trace` holds lines for `rollouts.jsonl`, which `rorqual trace` shows.
    """

    batches: list[TrainBatch]
    metrics: dict[str, Any] = field(default_factory=dict)
    fresh: bool = False
    unlearned: list[TrainBatch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    trace: list[dict[str, Any]] = field(default_factory=list)


class Source(ABC):
    """Provides the work of each step."""

    versions: dict[str, int] = {}
    """The versions of the problem families in use."""
    prompts: Sequence[str] = ()
    """Examples of the generated problems that it trains on. Prompts from a file may be private, so they are left out."""

    @abstractmethod
    def step(self, step: int) -> Step:
        """Return the work of step `step`, counted from 0."""


class SourceConfig(Kind):
    """Base class of source configs. `row` is the number of tokens in a row of a batch."""

    row: RowLength

    @property
    def samples_itself(self) -> bool:
        """Whether it samples the trained model through a rollout engine."""
        return False

    def build(self, materials: Materials) -> Source:
        """Build the source. Bad data raises an error here, before anything is written."""
        raise NotImplementedError

    def gives(self) -> frozenset[str]:
        """Return the optional batch fields that its batches contain."""
        return frozenset()

    def texts(self) -> Iterator[str]:
        """Yield text to train a tokenizer on (`start.tokenizer=bpe:SIZE`)."""
        raise NotImplementedError
