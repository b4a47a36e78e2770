"""Problems and samples that meet an evaluation set: the same text, or enough of its words in a row.

Texts are compared without case and punctuation, twice: with their numbers and the signs between them, and as words alone, so that
a problem with other numbers is met, too. `overlap` words in a row give an item away, by default 8 (GPT-3 used 8 to 13, Brown et al.
2020, appendix C). A shorter item of at least `SHORT` words is met where it stands inside other words; one that is shorter still, as
a whole. As in GPT-3, sequences that many texts share (here: over `COMMON` evaluation items, or problems to sample) are common text,
such as an instruction, and give nothing away. Not found: other words for the same, and a change in every eighth word. A character
of a script without spaces counts as a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rorqual.core.errors import DataError
from rorqual.core.parts import content_label, read_content
from rorqual.distil.filters import words
from rorqual.evals.run import pick
from rorqual.tasks.base import Problem, Split, Task, Verdict
from rorqual.tasks.find import load_task, safe_problems
from rorqual.tasks.rows import FileTask, read

COMMON = 10
SHORT = 4
SIGNS = frozenset("+-*/=<>^%×÷")
FROM_FILES, FROM_ENDLESS = 100_000, 250
"""How many problems of a test split are looked at: all that stand in files; of a task that makes them up, a sample, for making
one of its rare test problems may take milliseconds, and such a task divides its problems by a hash of their keys."""
TEXT_COLUMNS = ("prompt", "question", "problem", "text")

Gram = tuple[str, ...]


@dataclass(frozen=True)
class EvalItem:
    """One problem of an evaluation set, and where it stands (`file:line`, or `task NAME: key`). `key` is "" where it has none.

    `by_words`: met by its words, too, and not by its key and as a whole alone.
    """

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
    """Evaluation sets, indexed. `overlap`: words in a row that give an item away."""

    items: Sequence[EvalItem]
    overlap: int
    _keys: dict[str, EvalItem] = field(default_factory=dict, init=False)
    _whole: dict[Gram, EvalItem] = field(default_factory=dict, init=False)
    _grams: dict[Gram, EvalItem] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        held: Counter[Gram] = Counter()
        for item in self.items:
            if item.key:
                self._keys.setdefault(item.key, item)
            if found := bare(item.text):
                self._whole.setdefault(found, item)
            if item.by_words:
                short = {found} if SHORT <= len(found) < self.overlap else set()
                for gram in self._telling(found) | short:
                    held[gram] += 1
                    self._grams.setdefault(gram, item)
        self._drop_common(held)

    def _telling(self, found: Gram) -> set[Gram]:
        """The sequences of `overlap` words of a text, and those of its words without numbers and signs, which begin with "" here."""
        plain = tuple(word for word in found if word[0].isalpha())
        return grams(found, self.overlap) | {("", *gram) for gram in grams(plain, self.overlap)}

    def _all(self, text: str) -> set[Gram]:
        found = bare(text)
        return self._telling(found).union(*(grams(found, size) for size in range(SHORT, self.overlap)))

    def leave_out_common(self, texts: Iterable[str]) -> None:
        """Forget the sequences that over `COMMON` of `texts` hold."""
        held: Counter[Gram] = Counter()
        for text in texts:
            held.update(self._all(text) & self._grams.keys())
        self._drop_common(held)

    def _drop_common(self, held: Counter[Gram]) -> None:
        for gram, count in held.items():
            if count > COMMON:
                self._grams.pop(gram, None)

    def meets(self, text: str, key: str = "") -> Meeting | None:
        """The evaluation item that a problem with this prompt meets; None where there is none."""
        if key and key in self._keys:
            return Meeting(self._keys[key].where, "key")
        found = bare(text)
        if found in self._whole:
            return Meeting(self._whole[found].where, "whole prompt")
        return self.holds(text)

    def holds(self, text: str) -> Meeting | None:
        """The evaluation item that gives itself away in a text, such as a sample: enough of its words stand there in a row."""
        for gram in sorted(self._all(text) & self._grams.keys()):
            return Meeting(self._grams[gram].where, " ".join(gram).strip())
        return None


def bare(text: str) -> Gram:
    """The words of a text without punctuation: words and numbers, a minus before a number, and the signs of arithmetic between a number
    or a single letter and another word."""
    found = ["", *words(text), ""]
    kept = []
    for before, word, after in zip(found, found[1:], found[2:]):
        operates = word in SIGNS and before[:1].isalnum() and after[:1].isalnum() and (_term(before) or _term(after))
        if word[0].isalnum() or operates or (word == "-" and after[:1].isdigit()):
            kept.append(word)
    return tuple(kept)


def _term(word: str) -> bool:
    return word[0].isdigit() or len(word) == 1


def grams(found: Gram, size: int) -> set[Gram]:
    """The sequences of `size` words; none of a shorter text."""
    return {found[i : i + size] for i in range(len(found) - size + 1)}


def evaluation_items(source: str, seed: int) -> list[EvalItem]:
    """The items of `decontaminate=`: a JSONL or Parquet file of prompts, questions, problems, texts or messages, or the test
    split of a task. A `DataError` names a file without any of these columns; an unknown task is a `ConfigError`."""
    path = Path(source)
    if path.suffix in (".jsonl", ".parquet"):
        return list(_items_in(path))
    task = load_task(source)
    return [item_of(problem, source, by_words=not task.patterned) for problem in _Test(task).found(seed)]


class _Test(Task):
    """A task whose test split is looked at; `ended`: it has been, to its end."""

    def __init__(self, inner: Task) -> None:
        self.inner, self.name, self.ended = inner, inner.name, False

    def found(self, seed: int) -> list[Problem]:
        """The test split, or what is looked at of it."""
        return pick(self, "test", FROM_FILES if isinstance(self.inner, FileTask) else FROM_ENDLESS, seed, False)

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        yield from safe_problems(self.inner, split, seed)
        self.ended = True

    def grade(self, problem: Problem, reply: str) -> Verdict:
        raise NotImplementedError


def item_of(problem: Problem, task: str, *, by_words: bool = True) -> EvalItem:
    """A task's own problem as an evaluation item."""
    place = problem.meta.get("where")
    where = f"task {task}: {problem.key!r:.80}" + (f" ({place})" if place else "")
    return EvalItem("\n".join(m.label for m in problem.messages), where, problem.key, by_words)


def _items_in(path: Path) -> Iterable[EvalItem]:
    for row in read(path):
        column = next((name for name in TEXT_COLUMNS if isinstance(row.values.get(name), str)), None)
        if column is not None:
            yield EvalItem(row.values[column], row.where)
        elif isinstance(row.values.get("messages"), list):
            asked = [m for m in row.values["messages"] if isinstance(m, dict) and m.get("role") == "user"]
            yield EvalItem("\n".join(_said(m.get("content", ""), row.where) for m in asked), row.where)
        else:
            raise DataError(
                f"no column {', '.join(TEXT_COLUMNS)} or messages",
                where=row.where,
                remedy="decontaminate= needs the texts that a model will be measured on.",
            )


def _said(content: Any, where: str) -> str:
    return content_label(read_content(content, f"{where}: content")) if isinstance(content, list) else str(content)


def own_test(task: Task, seed: int) -> tuple[list[EvalItem], str]:
    """The task's own test split; and a note where it cannot be read.

    One that ends is met by key, as a whole and by words; one of `Task.patterned` by key and as a whole. Of one that never ends
    `FROM_ENDLESS` problems are met so, too: they come from the same few patterns as those of the other splits, and their keys are
    disjoint by a hash.
    """
    test = _Test(task)
    try:
        found = test.found(seed)
    except DataError as error:
        return [], f"no test split to compare with: {error.what}"
    by_words = test.ended and not task.patterned
    return [item_of(problem, task.name, by_words=by_words) for problem in found], ""
