"""Rows of a task's files: JSONL or Parquet, from a folder, a file, or the sample that the package ships."""

from __future__ import annotations

import json
import random
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rorqual.core.errors import DataError
from rorqual.tasks.base import Problem, Split, Task, split_of

SAMPLES = Path(__file__).parent / "samples"


@dataclass(frozen=True)
class DataRow:
    """One row and where it stands (`file:line`)."""

    values: dict[str, Any]
    where: str

    def get(self, name: str, *types: type) -> Any:
        """The value of column `name`, of one of `types`; else a `DataError` that names file, line and column."""
        if name not in self.values:
            raise DataError(
                f"no column '{name}'", where=self.where, remedy=f"The columns are: {', '.join(map(str, self.values))}."
            )
        value = self.values[name]
        if not isinstance(value, types or (str,)):
            wanted = " or ".join(t.__name__ for t in types or (str,))
            raise DataError(f"column '{name}' is not {wanted}: {value!r:.60}", where=self.where, remedy="Mend the row.")
        return value

    def texts(self, name: str) -> list[str]:
        """The value of column `name`, a list of texts."""
        value: list[str] = self.get(name, list)
        for item in value:
            if not isinstance(item, str):
                raise DataError(
                    f"column '{name}' holds what is no text: {item!r:.60}", where=self.where, remedy="Mend the row."
                )
        return value


def read(path: Path) -> Iterator[DataRow]:
    """The rows of a `.jsonl` or `.parquet` file. Lines end at `\\n` alone: JSON strings may hold other separators."""
    if not path.is_file():
        raise DataError("no such file", where=str(path), remedy="Check the path.")
    if path.suffix == ".parquet":
        try:
            rows = pq.read_table(path).to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"not Parquet: {error}", where=str(path), remedy="Fetch the file again.") from None
        yield from (DataRow(values, f"{path}:{i}") for i, values in enumerate(rows, 1))
        return
    for i, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:  # UTF-8, JSON, and numbers too long to be read are ValueErrors
            raise DataError(f"not JSON: {error}", where=f"{path}:{i}", remedy="Mend or delete the line.") from None
        if not isinstance(values, dict):
            raise DataError("not a JSON object", where=f"{path}:{i}", remedy="Write one {...} a line.")
        yield DataRow(values, f"{path}:{i}")


def files(data: Path, name: str) -> list[Path]:
    """Files of `data` (a folder, or one file of any name) whose name holds `name`, sorted; an error where there is none."""
    if data.is_file():
        return [data]
    found = sorted(p for p in data.glob("*") if p.suffix in (".jsonl", ".parquet") and name in p.stem)
    if not found:
        what = "has no" if data.is_dir() else "is neither a file nor a folder with a"
        raise DataError(
            f"{what} *{name}*.jsonl or .parquet", where=str(data), remedy="Name the folder or file that holds the data."
        )
    return found


def held_out(data: Path, split: Split, names: dict[str, str]) -> list[Path]:
    """The files that serve `split`. `names` gives the word in a file's name for "train" and "test".

    `dev` is served by the training files (see `carve`). A single file serves training where its name says so, else it is for
    evaluation: a file to measure on is never learned from by mistake.
    """
    source = "test" if split == "test" else "train"
    if data.is_file():
        serves = "train" if names["train"] in data.stem else "test"
        if serves != source:
            raise DataError(
                f"this file serves the split '{serves}' only, by its name; '{split}' was asked for",
                where=str(data),
                remedy=f"Name a folder with *{names[source]}* files, or call a file to train on '{names['train']}.jsonl'.",
            )
    return files(data, names[source])


def carve(problems: list[tuple[str, Problem]], split: Split) -> list[Problem]:
    """Divide training rows into train and dev by a hash of the first of each pair; test rows stay whole.

    What is hashed is what twins share: for questions about one text, the text.
    """
    if split == "test":
        return [problem for _, problem in problems]
    return [
        problem for group, problem in problems if (split_of(group, dev=0.05, test=0.0) == "dev") == (split == "dev")
    ]


def shuffled(problems: list[Problem], split: Split, seed: int, where: str) -> Iterator[Problem]:
    """The problems in the order of `seed`; nothing at all is an error."""
    if not problems:
        raise DataError(
            f"no problem in the split '{split}'", where=where, remedy="Check the file, or take another split."
        )
    random.Random(f"{seed} {split}").shuffle(problems)
    return iter(problems)


class FileTask(Task):
    """A task whose problems stand in files, which are read once for each split."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self._kept: dict[Split, tuple[Problem, ...]] = {}

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        if split not in self._kept:
            self._kept[split] = tuple(self.load(split))
        return shuffled(list(self._kept[split]), split, seed, str(self.data))

    @abstractmethod
    def load(self, split: Split) -> list[Problem]:
        """The problems of `split`, in the order of the files."""


def normal(text: str) -> str:
    """White space and case do not make another problem."""
    return " ".join(text.split()).lower()
