"""The JSON-lines files of a run: its metrics and its rollouts."""

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
    """A file of JSON lines, first truncated to `size` bytes: later lines belong to steps that will be repeated.

    The file is created with its first line. `size` counts the bytes so far, which checkpoints store.
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
        """Write one complete line. Raises RorqualError if the disk is full."""
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        try:
            file, left = self._open(), line
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            raise RorqualError(
                f"cannot write: {error.strerror}",
                where=str(self.path),
                remedy="Free disk space and repeat the command: it resumes from the last checkpoint.",
            ) from error
        self.size += len(line)
