"""Tasks whose problems are rows of files: a folder, a file, or the packaged sample."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from rorqual.core.errors import DataError
from rorqual.core.rows import DataRow, read_rows
from rorqual.tasks.task import Problem, Split, Task, split_of

SAMPLES = Path(__file__).parent / "samples"


def files_whose_name_contains(data: Path, name: str) -> list[Path]:
    """Return the sorted files of folder `data` whose name contains `name`. If `data` is a file, return only this file.

    Raises DataError if no file matches.
    """
    if data.is_file():
        return [data]
    matches = sorted(p for p in data.glob("*") if p.suffix in (".jsonl", ".parquet") and name in p.stem)
    if not matches:
        problem = "the folder has no" if data.is_dir() else "the path is neither a file nor a folder with a"
        raise DataError(
            f"{problem} *{name}*.jsonl or *{name}*.parquet",
            where=str(data),
            remedy="Give the folder or file with the data.",
        )
    return matches


def rows_of_split(data: Path, split: Split, test: str = "test") -> Iterator[DataRow]:
    """Return the rows of the files for `split`. The name of a training file contains "train", and the name of a test file the
    word `test`.

    The training files also supply `dev` (see `carve_dev_split`). A single file is a training file only if its name contains
    "train". A single file whose name lacks "train" is for evaluation, so that test data is never used for training by mistake.

    Raises DataError if `data` is a single file that is not for `split`.
    """
    word = test if split == "test" else "train"
    if data.is_file():
        serves = "train" if "train" in data.stem else "test"
        if (serves == "test") != (split == "test"):
            raise DataError(
                f"judging by its name, this file holds the split '{serves}', not '{split}'",
                where=str(data),
                remedy=f"Give a folder with *{word}* files, or name a training file 'train.jsonl'.",
            )
    return chain.from_iterable(map(read_rows, files_whose_name_contains(data, word)))


def carve_dev_split(problems: list[tuple[str, Problem]], split: Split) -> list[Problem]:
    """Divide (group, problem) pairs for training into train and dev by a hash of the group.

    Test problems are returned unchanged. A group holds related problems, such as
    questions about one text. All problems of a group are in one split.
    """
    if split == "test":
        return [problem for _, problem in problems]
    return [
        problem for group, problem in problems if (split_of(group, dev=0.05, test=0.0) == "dev") == (split == "dev")
    ]


def shuffle_problems(problems: list[Problem], split: Split, seed: int, where: str) -> Iterator[Problem]:
    """Return `problems`, shuffled by `seed`. Raises DataError if `problems` is empty."""
    if not problems:
        raise DataError(f"the split '{split}' is empty", where=where, remedy="Check the file, or use another split.")
    random.Random(f"{seed} {split}").shuffle(problems)
    return iter(problems)


class FileTask(Task):
    """A task that reads its problems from files. Each split is read once and cached."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self._cache: dict[Split, tuple[Problem, ...]] = {}

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        if split not in self._cache:
            self._cache[split] = tuple(self.load(split))
        return shuffle_problems(list(self._cache[split]), split, seed, str(self.data))

    @abstractmethod
    def load(self, split: Split) -> list[Problem]:
        """Return the problems of `split` in file order."""


def normalize_text(text: str) -> str:
    """Return `text` in lower case with single spaces. Problems that differ only in case or white space count as one problem."""
    return " ".join(text.split()).lower()
