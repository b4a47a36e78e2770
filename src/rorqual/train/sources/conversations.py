"""A source of conversations from a JSONL or Parquet file, trained on every assistant turn."""

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
    """Train on a file of conversations.

    `longer` sets whether a conversation longer than `row` tokens raises an error, is cut, or is skipped and counted.
    """

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
    """A source that uses every conversation once per epoch. Each epoch has its own order."""

    def __init__(self, config: ConversationsConfig, materials: Materials) -> None:
        loaded = read_conversations(Path(config.data))
        # Each turn with reasoning, except the last turn, gets a separate sample that ends with this turn.
        rendered = [sample for messages in loaded.conversations for sample in materials.chat.samples(messages)]
        samples = [Sample(r.ids, r.mask) for r in rendered]
        too_long = [len(s) for s in samples if len(s) > config.row]
        if too_long and config.longer == "error":
            raise DataError(
                f"{len(too_long)} of {len(samples)} conversations are longer than a row of {config.row} tokens (the longest: {max(too_long)})",
                where=config.data,
                remedy=f"Set row={max(too_long)}, or source.longer=cut or skip.",
            )
        usable = [s.cut(config.row) for s in samples if config.longer == "cut" or len(s) <= config.row]
        empty = sum(not s.n_trained for s in usable)  # cutting may leave only the prompt
        self.stream = ConversationStream(usable, config.rows, config.row, materials.seed, pad=materials.chat.pad)
        self.notes = []
        skipped = len(samples) - len(usable)
        if loaded.skipped or empty or skipped:
            self.notes = [
                f"{config.data}: skipped {loaded.skipped + empty} with nothing to train on, {skipped} longer than a row"
            ]

    def step(self, step: int) -> Step:
        notes, self.notes = self.notes, []
        return Step([TrainBatch.from_packed(self.stream.batch(step))], notes=notes)
