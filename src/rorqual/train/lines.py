"""Write the JSON-lines files of a run: `metrics.jsonl` and `rollouts.jsonl`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rorqual.core.errors import RorqualError


class Lines:
    """A JSON-lines file of a run, opened for appending.

    Opening truncates the file to `size` bytes, because a resumed run repeats the steps that wrote later lines. The
    first append creates the file. The attribute `size` is the current size in bytes, which checkpoints store.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self._file: FileIO | None = None
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        if self.path.is_file():
            self._open().truncate(self.size)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closing.close()

    def _open(self) -> FileIO:
        if self._file is None:
            self._file = self._closing.enter_context(FileIO(self.path, "ab"))
            self.size = min(self.size, os.fstat(self._file.fileno()).st_size)
        return self._file

    def append(self, record: Mapping[str, Any]) -> None:
        """Append `record` as one complete line. Raises RorqualError if writing fails, such as on a full disk."""
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        try:
            file, remaining = self._open(), line
            while remaining:
                remaining = remaining[file.write(remaining) :]
        except OSError as error:
            raise RorqualError(
                f"cannot write: {error.strerror}",
                where=str(self.path),
                remedy="Free disk space and repeat the command: it resumes from the last checkpoint.",
            ) from error
        self.size += len(line)
