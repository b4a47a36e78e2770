"""A source of conversations from a JSONL or Parquet file, trained on every assistant turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from rorqual.core.config import RowLength, Rows
from rorqual.core.errors import DataError
from rorqual.data.pack import TrainingSample
from rorqual.data.source.conversations import read_conversations
from rorqual.data.stream import ConversationStream
from rorqual.train.sources.source import Source, SourceConfig, SourceInputs, StreamSource


class ConversationsConfig(SourceConfig):
    """Train on a file of conversations. Every conversation is used once per epoch. The order of conversations differs between epochs.

    `longer` sets whether a conversation longer than `row` tokens raises an error, is cut, or is skipped and counted.
    """

    kind: Literal["conversations"] = "conversations"
    data: str
    rows: Rows = 16
    row: RowLength = 1024
    longer: Literal["error", "cut", "skip"] = "error"

    def build(self, materials: SourceInputs) -> Source:
        loaded = read_conversations(Path(self.data))
        # Each turn with reasoning, except the last turn, gets a separate sample that ends with this turn.
        tools = loaded.tools or [()] * len(loaded.conversations)
        rendered = [
            sample
            for messages, offered in zip(loaded.conversations, tools, strict=True)
            for sample in materials.chat.training_renderings(messages, offered)
        ]
        samples = [TrainingSample(r.ids, r.mask) for r in rendered]
        too_long = [len(s) for s in samples if len(s) > self.row]
        if too_long and self.longer == "error":
            raise DataError(
                f"{len(too_long)} of {len(samples)} conversations are longer than a row of {self.row} tokens (the longest: {max(too_long)})",
                where=self.data,
                remedy=f"Set row={max(too_long)}, or source.longer=cut or skip.",
            )
        usable = [s.truncate(self.row) for s in samples if self.longer == "cut" or len(s) <= self.row]
        empty = sum(not s.n_trained_tokens for s in usable)  # cutting may leave only the prompt
        stream = ConversationStream(usable, self.rows, self.row, materials.seed, pad=materials.chat.pad)
        skipped, silent = len(samples) - len(usable), loaded.skipped + empty
        note = f"{self.data}: skipped {silent} with nothing to train on, {skipped} longer than a row"
        return StreamSource(stream, [note] if silent or skipped else ())

    def texts(self) -> Iterator[str]:
        for messages in read_conversations(Path(self.data)).conversations:
            for message in messages:
                yield f"{message.reasoning or ''} {message.text}"
