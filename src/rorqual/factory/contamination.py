"""Contamination check: find problems and samples that equal an evaluation item or share consecutive words with an evaluation
item.

Matching ignores case and punctuation. Each text is compared twice: once with numbers and operators, and once with only
its words. The comparison by words finds problems whose numbers were changed. `overlap` consecutive words count as a
match. `overlap` is 8 by default; GPT-3 used 8 to 13 (Brown et al. 2020, appendix C). An evaluation item with fewer than
`overlap` words, but at least `SHORT` words, matches if a text contains the whole item. An item with fewer than `SHORT` words
matches only a text that equals the item.

Common sequences such as instructions do not count as matches. A sequence is common if it occurs in more than `COMMON`
distinct evaluation items, or in all of at least `FEW`. Items with the same words are one item, even if their numbers differ:
an evaluation file may have many copies of an item, such as the log of pass@16. How many training problems have the sequence
does not matter either. The data card says how many sequences are common, with an example. The check does not find paraphrases,
or texts in which every eighth word was changed. A character of a script without spaces counts as a word.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rorqual.core.content_parts import content_label, read_content
from rorqual.core.errors import DataError
from rorqual.core.rows import READERS, read_rows
from rorqual.factory.filters import words
from rorqual.tasks.file_task import FileTask
from rorqual.tasks.find import load_task, safe_problems
from rorqual.tasks.task import Problem, Task

COMMON, FEW = 10, 4
SHORT = 4
SIGNS = frozenset("+-*/=<>^%×÷")
FROM_FILES, FROM_ENDLESS, DRAW_SECONDS = 100_000, 250, 3.0
"""Maximum number of test problems to compare with. `FROM_FILES` applies to tasks that read files, and `FROM_ENDLESS` to
endless tasks, which generate their problems. A user's task counts as finite if its test split ends within `FROM_FILES`
problems and `DRAW_SECONDS` seconds of processor time.

In endless tasks, a hash of the key assigns each problem to a split, and few problems fall into the test split. Finding a test
problem may therefore take milliseconds, so the maximum number for endless tasks is low.
"""
TEXT_COLUMNS = ("prompt", "question", "problem", "text", "messages")
"""Columns of an evaluation file that are compared. A value is a text, or a list of messages, whose user messages are compared."""

Gram = tuple[str, ...]


@dataclass(frozen=True)
class EvalItem:
    """A problem of an evaluation set.

    `texts`: the texts of the problem, such as the columns of its row. Each text, and all of them joined, are compared.
    `where`: location of the problem, `file:line` or `task NAME: key`. `key`: the problem's key, or empty. `by_words`:
    whether consecutive words count as a match, in addition to the key and the whole text. `whole`: all messages of a
    conversation joined, whose user messages are in `texts`. Only `whole` is then compared as a whole text.
    """

    texts: tuple[str, ...]
    where: str
    key: str = ""
    by_words: bool = True
    whole: str = ""


@dataclass(frozen=True)
class EvalMatch:
    """A match with an evaluation item. `where`: location of the evaluation item. `how`: "key", "whole prompt" or the matching
    words."""

    where: str
    how: str


@dataclass
class EvalItemIndex:
    """A search index of evaluation items. `overlap`: number of consecutive words that count as a match. `common`: the sequences
    of words that do not count, because many evaluation items have them."""

    items: Sequence[EvalItem]
    overlap: int
    common: list[str] = field(init=False)
    _keys: dict[str, EvalItem] = field(default_factory=dict, init=False)
    _whole: dict[Gram, EvalItem] = field(default_factory=dict, init=False)
    _grams: dict[Gram, EvalItem] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        grams_of_distinct: dict[Gram, set[Gram]] = {}
        for item in self.items:
            if item.key:
                self._keys.setdefault(item.key, item)
            texts = [bare_words(text) for text in dict.fromkeys((*item.texts, "\n".join(item.texts)))]
            wholes = [bare_words(item.whole)] if item.whole else texts
            grams = grams_of_distinct.setdefault(without_numbers(wholes[-1]), set())
            for text_words in filter(None, wholes):
                self._whole.setdefault(text_words, item)
            for text_words in texts:
                if item.by_words:
                    is_short = SHORT <= len(text_words) < self.overlap and text_words in wholes
                    for gram in self._overlap_grams(text_words) | ({text_words} if is_short else set()):
                        grams.add(gram)
                        self._grams.setdefault(gram, item)
        counts = Counter(chain.from_iterable(grams_of_distinct.values()))
        common = [g for g, n in counts.items() if n > COMMON or n == len(grams_of_distinct) >= FEW]
        for gram in common:
            del self._grams[gram]
        self.common = sorted({" ".join(gram).strip() for gram in common})

    def _overlap_grams(self, text_words: Gram) -> set[Gram]:
        """Return all sequences of `overlap` consecutive words of the text, and of the text without numbers and operators.

        A sequence of the text without numbers and operators starts with an empty string as a mark.
        """
        return word_grams(text_words, self.overlap).union(
            ("", *gram) for gram in word_grams(without_numbers(text_words), self.overlap)
        )

    def _all_grams(self, text: str) -> set[Gram]:
        text_words = bare_words(text)
        return self._overlap_grams(text_words).union(
            *(word_grams(text_words, size) for size in range(SHORT, self.overlap))
        )

    def match_problem(self, text: str, key: str = "") -> EvalMatch | None:
        """Return how a problem with prompt `text` and key `key` matches an evaluation item (by key, whole prompt or consecutive
        words), or None."""
        if key and key in self._keys:
            return EvalMatch(self._keys[key].where, "key")
        text_words = bare_words(text)
        if text_words in self._whole:
            return EvalMatch(self._whole[text_words].where, "whole prompt")
        return self.match_text(text)

    def match_text(self, text: str) -> EvalMatch | None:
        """Return how a text, such as a sample, matches an evaluation item by consecutive words, or None."""
        for gram in sorted(self._all_grams(text) & self._grams.keys()):
            return EvalMatch(self._grams[gram].where, " ".join(gram).strip())
        return None


def bare_words(text: str) -> Gram:
    """Split a text into words, numbers and arithmetic operators, without punctuation.

    A sign counts as an operator if it is between two words, at least one of which is a number or a single letter. A
    minus sign before a number is not removed.
    """
    tokens = ["", *words(text), ""]
    kept = []
    for before, word, after in zip(tokens, tokens[1:], tokens[2:]):
        is_operator = (
            word in SIGNS
            and before[:1].isalnum()
            and after[:1].isalnum()
            and (_is_number_or_letter(before) or _is_number_or_letter(after))
        )
        if word[0].isalnum() or is_operator or (word == "-" and after[:1].isdigit()):
            kept.append(word)
    return tuple(kept)


def without_numbers(text_words: Gram) -> Gram:
    """Return the words without numbers and operators."""
    return tuple(word for word in text_words if word[0].isalpha())


def _is_number_or_letter(word: str) -> bool:
    return word[0].isdigit() or len(word) == 1


def word_grams(text_words: Gram, size: int) -> set[Gram]:
    """Return the set of all sequences of `size` consecutive words. Return an empty set for a text with fewer than `size`
    words."""
    return {text_words[i : i + size] for i in range(len(text_words) - size + 1)}


def evaluation_items(source: str, seed: int) -> tuple[list[EvalItem], str]:
    """Load the evaluation items of a `decontaminate=` entry: a file of rows, or the test split of a task. Also return a note
    if the test split was cut, else "".

    All columns in `TEXT_COLUMNS` that a row has are compared. Raises DataError for a file of an unknown type, or if a row has
    no words in these columns, and ConfigError for an unknown task.
    """
    path = Path(source)
    if path.suffix.lower() in READERS or (path.suffix and ".py" not in path.suffix and path.is_file()):
        return list(_items_in(path)), ""
    task = load_task(source)
    problems, cut = _test_problems(task, seed)
    return [eval_item_of_problem(problem, source, by_words=not task.patterned) for problem in problems], cut


def _test_problems(task: Task, seed: int) -> tuple[list[Problem], str]:
    """Return (problems, cut): the problems of the test split, up to the maximum number to compare with, and a note if the
    task has more, else "".

    Tasks of Rorqual that read no files are endless. Of any other task without files, all problems are returned if the split
    ends within the limits, else the first `FROM_ENDLESS`, so that the clock does not choose the problems.
    """
    drawn = safe_problems(task, "test", seed)
    problems = list(islice(drawn, FROM_ENDLESS))
    if not problems:
        raise DataError("the test split contains no problems", where=f"task {task.name}", remedy="Check the data.")
    in_files, began = isinstance(task, FileTask), time.process_time()
    if in_files or not type(task).__module__.startswith("rorqual."):
        for problem in islice(drawn, FROM_FILES - FROM_ENDLESS):
            problems.append(problem)
            if not in_files and time.process_time() - began > DRAW_SECONDS:
                break
    if next(drawn, None) is None:
        return problems, ""
    problems = problems if in_files else problems[:FROM_ENDLESS]
    return problems, f"decontamination: task {task.name} has more test problems than the {len(problems)} compared"


def eval_item_of_problem(problem: Problem, task: str, *, by_words: bool = True) -> EvalItem:
    """Convert a problem of a task to an evaluation item. Only the words of user messages are compared, because problems
    for training may have the same system prompt."""
    place = problem.meta.get("where")
    where = f"task {task}: {problem.key!r:.80}" + (f" ({place})" if place else "")
    user_text = "\n".join(m.label for m in problem.messages if m.role == "user")
    whole = "\n".join(m.label for m in problem.messages)
    return EvalItem((user_text,), where, problem.key, by_words, whole)


def _items_in(path: Path) -> Iterable[EvalItem]:
    for row in read_rows(path):
        texts = [_text_of(row.values.get(name), row.where) for name in TEXT_COLUMNS]
        if not bare_words("\n".join(texts)):
            raise DataError(
                f"the row has no words in the columns {', '.join(TEXT_COLUMNS)}",
                where=row.where,
                remedy="Write the evaluation's prompt into one of these columns, or remove the row.",
            )
        yield EvalItem(tuple(filter(None, texts)), row.where)


def _text_of(value: Any, where: str) -> str:
    if isinstance(value, list):
        contents = [m.get("content") or "" for m in value if isinstance(m, dict) and m.get("role") == "user"]
        return "\n".join(
            content_label(read_content(content, f"{where}: content")) if isinstance(content, list) else str(content)
            for content in contents
        )
    return value if isinstance(value, str) else ""


def own_test_items(task: Task, seed: int) -> tuple[list[EvalItem], str]:
    """Return the evaluation items of the task's own test split, and a note if this split was cut or cannot be read, else "".

    Items of a finite split match by key, whole text and consecutive words. Items of a `Task.patterned` task or of an
    endless split match only by key and whole text. All problems of a patterned or endless task share a few sentence
    patterns, so even unrelated problems would match by consecutive words. In endless tasks, a hash keeps the keys of
    the splits disjoint.
    """
    try:
        problems, cut = _test_problems(task, seed)
    except DataError as error:
        return [], f"the task has no test split for the contamination check: {error.what}"
    by_words = (not cut or isinstance(task, FileTask)) and not task.patterned
    return [eval_item_of_problem(problem, task.name, by_words=by_words) for problem in problems], cut
