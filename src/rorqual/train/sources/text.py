"""A source of plain text for pretraining: windows of a file, trained on every token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from rorqual.core.config import RowLength, Rows
from rorqual.data.source.text import read_text_split
from rorqual.data.stream import TextStream
from rorqual.train.sources.source import Source, SourceConfig, SourceInputs, StreamSource


class TextConfig(SourceConfig):
    """Train on the first nine tenths of a text file. The last tenth of the file is held out (`rorqual eval RUN data=FILE`)."""

    kind: Literal["text"] = "text"
    data: str
    rows: Rows = 12
    row: RowLength = 64

    def build(self, materials: SourceInputs) -> Source:
        ids = np.asarray(materials.tokenizer.encode(read_text_split(Path(self.data)).train), dtype=np.int64)
        return StreamSource(TextStream(ids, self.rows, self.row, materials.seed))

    def texts(self) -> Iterator[str]:
        yield read_text_split(Path(self.data)).train
