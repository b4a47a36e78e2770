"""Conversations from a JSONL or Parquet file. Every assistant turn is trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from rorqual.core.config import RowLength, Rows
from rorqual.core.errors import DataError
from rorqual.data.pack import Sample
from rorqual.data.source.conversations import read_conversations
from rorqual.data.stream import ConversationStream
from rorqual.train.batch import TrainBatch
from rorqual.train.sources.base import Materials, Source, SourceConfig, Step


class ConversationsConfig(SourceConfig):
    """Train on a file of conversations. One longer than `row` is an error, or `longer` cuts it, or skips and counts it."""

    kind: Literal["conversations"] = "conversations"
    data: str
    rows: Rows = 16
    row: RowLength = 1024
    longer: Literal["error", "cut", "skip"] = "error"

    def build(self, materials: Materials) -> Source:
        return Conversations(self, materials)

    def texts(self) -> Iterator[str]:
        for messages in read_conversations(Path(self.data)).conversations:
            for message in messages:
                yield f"{message.reasoning or ''} {message.text}"


class Conversations(Source):
    """Uses every conversation once per epoch, in an order of its own for each epoch."""

    def __init__(self, config: ConversationsConfig, materials: Materials) -> None:
        loaded = read_conversations(Path(config.data))
        # An earlier turn with reasoning is trained in a separate rendering, in which it is the last turn.
        rendered = [one for messages in loaded.conversations for one in materials.chat.samples(messages)]
        samples = [Sample(r.ids, r.mask) for r in rendered]
        long = [len(s) for s in samples if len(s) > config.row]
        if long and config.longer == "error":
            raise DataError(
                f"{len(long)} of {len(samples)} conversations are longer than a row of {config.row} tokens (the longest: {max(long)})",
                where=config.data,
                remedy=f"Set row={max(long)}, or source.longer=cut or skip.",
            )
        kept = [s.cut(config.row) for s in samples if config.longer == "cut" or len(s) <= config.row]
        empty = sum(not s.n_trained for s in kept)  # cutting may leave only the prompt
        self.stream = ConversationStream(kept, config.rows, config.row, materials.seed, pad=materials.chat.pad)
        self.notes = []
        longer = len(samples) - len(kept)
        if loaded.skipped or empty or longer:
            self.notes = [
                f"{config.data}: skipped {loaded.skipped + empty} with nothing to train on, {longer} longer than a row"
            ]

    def step(self, step: int) -> Step:
        notes, self.notes = self.notes, []
        return Step([TrainBatch.from_packed(self.stream.batch(step))], notes=notes)
