"""Contamination checks: problems and samples that match an evaluation set as a whole, or by enough consecutive words.

Matching ignores case and punctuation. It runs twice: with numbers and the operators between them, and with words
alone, so that a problem with different numbers also matches. `overlap` consecutive words count as a match, by default
8 (GPT-3 used 8 to 13, Brown et al. 2020, appendix C). An item shorter than `overlap` but of at least `SHORT` words
matches inside other text. A still shorter item matches only as a whole.

As in GPT-3, common sequences, such as instructions, do not count. A sequence is common if over `COMMON` evaluation
items, or over `COMMON` problems to sample, contain it. The check misses paraphrases, and texts with a change in every
eighth word. A character of a script without spaces counts as a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rorqual.core.errors import DataError
from rorqual.core.parts import content_label, read_content
from rorqual.evals.run import pick
from rorqual.factory.filters import words
from rorqual.tasks.base import Problem, Split, Task, Verdict
from rorqual.tasks.find import load_task, safe_problems
from rorqual.tasks.rows import FileTask, read

COMMON = 10
SHORT = 4
SIGNS = frozenset("+-*/=<>^%×÷")
FROM_FILES, FROM_ENDLESS = 100_000, 250
"""How many problems of a test split are compared: all in files, but only a sample of an endless task.

An endless task may need milliseconds for one of its rare test problems. It assigns problems to splits by a hash of
their keys.
"""
TEXT_COLUMNS = ("prompt", "question", "problem", "text")

Gram = tuple[str, ...]


@dataclass(frozen=True)
class EvalItem:
    """One problem of an evaluation set, and its location (`file:line`, or `task NAME: key`). `key` may be "".

    With `by_words` it also matches by consecutive words, not only by its key or as a whole.
    """

    text: str
    where: str
    key: str = ""
    by_words: bool = True


@dataclass(frozen=True)
class Meeting:
    """A match with an evaluation item: `how` is "key", "whole prompt" or the matching words."""

    where: str
    how: str


@dataclass
class Evaluations:
    """An index of evaluation sets. `overlap` is the number of consecutive words that count as a match."""

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
        """Return the sequences of `overlap` words of a text, and those of its words without numbers and operators.

        The latter are marked with a leading "".
        """
        plain = tuple(word for word in found if word[0].isalpha())
        return grams(found, self.overlap) | {("", *gram) for gram in grams(plain, self.overlap)}

    def _all(self, text: str) -> set[Gram]:
        found = bare(text)
        return self._telling(found).union(*(grams(found, size) for size in range(SHORT, self.overlap)))

    def leave_out_common(self, texts: Iterable[str]) -> None:
        """Remove the sequences that more than `COMMON` of `texts` contain."""
        held: Counter[Gram] = Counter()
        for text in texts:
            held.update(self._all(text) & self._grams.keys())
        self._drop_common(held)

    def _drop_common(self, held: Counter[Gram]) -> None:
        for gram, count in held.items():
            if count > COMMON:
                self._grams.pop(gram, None)

    def meets(self, text: str, key: str = "") -> Meeting | None:
        """Return the evaluation item that a problem with this prompt matches, else None."""
        if key and key in self._keys:
            return Meeting(self._keys[key].where, "key")
        found = bare(text)
        if found in self._whole:
            return Meeting(self._whole[found].where, "whole prompt")
        return self.holds(text)

    def holds(self, text: str) -> Meeting | None:
        """Return the evaluation item that matches consecutive words of a text, such as a sample; else None."""
        for gram in sorted(self._all(text) & self._grams.keys()):
            return Meeting(self._grams[gram].where, " ".join(gram).strip())
        return None


def bare(text: str) -> Gram:
    """Return the words of a text without punctuation.

    These are words, numbers, a minus before a number, and arithmetic operators. An operator counts only between two
    words, of which one is a number or a single letter.
    """
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
    """Return the set of sequences of `size` words; empty for a shorter text."""
    return {found[i : i + size] for i in range(len(found) - size + 1)}


def evaluation_items(source: str, seed: int) -> list[EvalItem]:
    """Return the items of a `decontaminate=` entry: a JSONL or Parquet file, or the test split of a task.

    A file needs a column of prompts, questions, problems, texts or messages. Raises DataError if it has none of these,
    and ConfigError for an unknown task.
    """
    path = Path(source)
    if path.suffix in (".jsonl", ".parquet"):
        return list(_items_in(path))
    task = load_task(source)
    return [item_of(problem, source, by_words=not task.patterned) for problem in _Test(task).found(seed)]


class _Test(Task):
    """A task whose test split is read. `ended` becomes true if the split has been read to its end."""

    def __init__(self, inner: Task) -> None:
        self.inner, self.name, self.ended = inner, inner.name, False

    def found(self, seed: int) -> list[Problem]:
        """Return the problems of the test split, or the sample of them that is compared."""
        return pick(self, "test", FROM_FILES if isinstance(self.inner, FileTask) else FROM_ENDLESS, seed, False)

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        yield from safe_problems(self.inner, split, seed)
        self.ended = True

    def grade(self, problem: Problem, reply: str) -> Verdict:
        raise NotImplementedError


def item_of(problem: Problem, task: str, *, by_words: bool = True) -> EvalItem:
    """Return a task's problem as an evaluation item."""
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
                f"the row has none of the columns {', '.join(TEXT_COLUMNS)} or messages",
                where=row.where,
                remedy="Give decontaminate= a file with the prompts of an evaluation.",
            )


def _said(content: Any, where: str) -> str:
    return content_label(read_content(content, f"{where}: content")) if isinstance(content, list) else str(content)


def own_test(task: Task, seed: int) -> tuple[list[EvalItem], str]:
    """Return the items of the task's own test split, and a note if it cannot be read.

    A split that ends matches by key, as a whole and by words. The split of a `Task.patterned` task matches by key and
    as a whole only. So do the `FROM_ENDLESS` problems of a split that never ends: they share a few patterns with the
    other splits, and a hash keeps their keys disjoint.
    """
    test = _Test(task)
    try:
        found = test.found(seed)
    except DataError as error:
        return [], f"the task has no test split for the contamination check: {error.what}"
    by_words = test.ended and not task.patterned
    return [item_of(problem, task.name, by_words=by_words) for problem in found], ""
