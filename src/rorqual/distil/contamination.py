"""Problems and samples that meet an evaluation set: the same text, or enough of its words in a row.

Thirteen words in a row are the field's measure (Brown et al. 2020, appendix C), and as there, sequences that many texts share
(here: over `COMMON` evaluation items, or problems to sample) are common text, such as an instruction, and give nothing away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rorqual.core.errors import DataError
from rorqual.distil.filters import words
from rorqual.evals.run import pick
from rorqual.tasks.base import Problem, Task
from rorqual.tasks.find import load_task
from rorqual.tasks.rows import FileTask, read

COMMON = 10
FROM_FILES, FROM_ENDLESS = 100_000, 250
"""How many problems of a test split are looked at: all that stand in files; of a task that makes them up, a sample, for making
one of its rare test problems may take milliseconds, and such a task divides its problems by a hash of their keys."""
TEXT_COLUMNS = ("prompt", "question", "problem", "text")

Gram = tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """One problem of an evaluation set, and where it stands (`file:line`, or `task NAME: key`). `key` is "" where it has none."""

    text: str
    where: str
    key: str = ""
    by_words: bool = True


@dataclass(frozen=True)
class Meeting:
    """What was met: `how` is "key", "whole prompt" or the words themselves."""

    where: str
    how: str


@dataclass
class Evaluations:
    """Evaluation sets, indexed. `overlap`: words in a row that give an item away; a shorter one must be met as a whole."""

    items: Sequence[Item]
    overlap: int
    _keys: dict[str, Item] = field(default_factory=dict, init=False)
    _whole: dict[Gram, Item] = field(default_factory=dict, init=False)
    _grams: dict[Gram, Item] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        held: Counter[Gram] = Counter()
        for item in self.items:
            if item.key:
                self._keys.setdefault(item.key, item)
            found = tuple(words(item.text))
            if found:
                self._whole.setdefault(found, item)
            if item.by_words:
                for gram in grams(found, self.overlap):
                    held[gram] += 1
                    self._grams.setdefault(gram, item)
        self._drop_common(held)

    def leave_out_common(self, texts: Iterable[str]) -> None:
        """Forget the sequences that over `COMMON` of `texts` hold."""
        held: Counter[Gram] = Counter()
        for text in texts:
            held.update(gram for gram in grams(tuple(words(text)), self.overlap) if gram in self._grams)
        self._drop_common(held)

    def _drop_common(self, held: Counter[Gram]) -> None:
        for gram, count in held.items():
            if count > COMMON:
                self._grams.pop(gram, None)

    def meets(self, text: str, key: str = "") -> Meeting | None:
        """The evaluation item that a problem with this prompt meets; None where there is none."""
        if key and key in self._keys:
            return Meeting(self._keys[key].where, "key")
        found = tuple(words(text))
        if found in self._whole:
            return Meeting(self._whole[found].where, "whole prompt")
        return self.holds(text)

    def holds(self, text: str) -> Meeting | None:
        """The evaluation item of which a text, such as a sample, holds `overlap` words in a row."""
        found = tuple(words(text))
        for gram in sorted(grams(found, self.overlap) & self._grams.keys()):
            return Meeting(self._grams[gram].where, " ".join(gram))
        return None


def grams(found: Gram, size: int) -> set[Gram]:
    """The sequences of `size` words; none of a shorter text."""
    return {found[i : i + size] for i in range(len(found) - size + 1)}


def evaluation_items(source: str, seed: int) -> list[Item]:
    """The items of `decontaminate=`: a JSONL or Parquet file of prompts, questions, problems, texts or messages, or the test
    split of a task. A `DataError` names a file without any of these columns; an unknown task is a `ConfigError`."""
    path = Path(source)
    if path.suffix in (".jsonl", ".parquet"):
        return list(_items_in(path))
    return [item_of(problem, source) for problem in test_problems(load_task(source), seed)]


def test_problems(task: Task, seed: int) -> list[Problem]:
    """The test split, or what is looked at of it."""
    return pick(task, "test", FROM_FILES if isinstance(task, FileTask) else FROM_ENDLESS, seed, False)


def item_of(problem: Problem, task: str, *, by_words: bool = True) -> Item:
    """A task's own problem as an evaluation item."""
    place = problem.meta.get("where")
    where = f"task {task}: {problem.key!r:.80}" + (f" ({place})" if place else "")
    return Item("\n".join(m.content for m in problem.messages), where, problem.key, by_words)


def _items_in(path: Path) -> Iterable[Item]:
    for row in read(path):
        column = next((name for name in TEXT_COLUMNS if isinstance(row.values.get(name), str)), None)
        if column is not None:
            yield Item(row.values[column], row.where)
        elif isinstance(row.values.get("messages"), list):
            asked = [m for m in row.values["messages"] if isinstance(m, dict) and m.get("role") == "user"]
            yield Item("\n".join(str(m.get("content", "")) for m in asked), row.where)
        else:
            raise DataError(
                f"no column {', '.join(TEXT_COLUMNS)} or messages",
                where=row.where,
                remedy="decontaminate= needs the texts that a model will be measured on.",
            )


def own_test(task: Task, seed: int) -> tuple[list[Item], str]:
    """The task's own test split, met by key or as a whole; and a note where it cannot be read."""
    try:
        found = test_problems(task, seed)
    except DataError as error:
        return [], f"no test split to compare with: {error.what}"
    return [item_of(problem, task.name, by_words=False) for problem in found], ""
