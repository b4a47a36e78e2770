"""The task of a file of examples: train, dev and a sealed test split, as `rorqual teach` writes them.

Each reading of the test split's rows is recorded in `openings.jsonl`. If choices are made after many readings of the test
split, accuracy on the test split no longer shows how well a model solves new problems.
"""

from __future__ import annotations

import gzip
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import rorqual
from rorqual.core.conversations import text_to_turns
from rorqual.core.errors import DataError, TaskError, suggest_name
from rorqual.core.journal import append_line, json_line, read_lines
from rorqual.core.records import write_atomic, write_json
from rorqual.core.user_code import import_file
from rorqual.tasks.answer import answer_number, final_answer
from rorqual.tasks.answer_marks import last_mark
from rorqual.tasks.file_task import FileTask, normalize_text
from rorqual.tasks.messages import ConversationProblem
from rorqual.tasks.task import Problem, Split, Verdict

AnswerKind = Literal["label", "number", "JSON", "text"]
LEAD = re.compile(
    r"(?:-\s+|[*#\s])*(?:(?:the |final |right |correct )*answer(?:\s+is\b\s*:?|\s*\**\s*:))?", re.IGNORECASE
)
"""A pattern for the words that may precede the answer on the last line, such as "**Answer:**"."""
LEADING_ZERO = re.compile(r"0\d+")
"""Digits with a leading zero are an identifier, such as the postcode 01002. Other digits are another identifier."""
FACTS_FILE, OPENINGS_FILE, SEALED_FILE = "task.json", "openings.jsonl", "test.sealed"


@dataclass(frozen=True)
class SealedSplitReading:
    """A record that the test split was read once. `checkpoint` is the digest of the checkpoint that was measured, or ""."""

    time: str
    command: str
    version: str
    checkpoint: str


class ExamplesTask(FileTask):
    """Problems from a folder that `rorqual teach` wrote: `train.jsonl`, `dev.jsonl`, `test.sealed` and `task.json`.

    `grader` names a function of prompt, gold answer and reply, such as `./mine.py:function`. Without a grader, `kind` decides
    how answers are compared:

    - label: case, white space and a final full stop of the answer are ignored.
    - number: numbers are compared by value. The number in a reply is marked (`#### 18`) or is the last line of the reply, with
      or without a unit. To a gold answer such as 007, only 007 is equal.
    - JSON: JSON values are compared. Case and white space in strings are ignored, and a null equals a missing key.
    - text: differences in the white space of two answers are ignored.

    The default `kind` is the kind in `task.json`. With `last_line`, a reply may give reasons before the answer, and the last
    line, with or without "Answer:", is the answer. With `last_line`, a user's grader is called both with the whole reply and
    with the end of the reply.
    """

    name = "examples"

    def __init__(self, data: Path, grader: str = "", kind: AnswerKind | None = None, last_line: bool = False) -> None:
        super().__init__(data)
        self.last_line = last_line
        self.kind: AnswerKind = kind or read_task_json(data)["kind"]
        self.grader = grader
        self.judge = load_function(grader, "grader") if grader else None

    def load(self, split: Split) -> list[Problem]:
        if split != "test":
            lines = list(read_lines(self.data / f"{split}.jsonl"))
        else:
            lines = [json.loads(line) for line in _read_sealed_test_lines(self.data)]
            record_test_reading(self.data, self.checkpoint)
        return [
            ConversationProblem(
                key=line["key"],
                prompt=line["prompt"],
                answer=line["completion"],
                family=self.name,
                steps=line.get("reasoning"),
                meta={
                    "where": f"{self.data}, line {line['line']} of the file of examples",
                    "messages": text_to_turns(line["prompt"]),
                },
            )
            for line in lines
        ]

    def grade(self, problem: Problem, reply: str) -> Verdict:
        gold = canonical_form(problem.answer, self.kind, gold=problem.answer)
        for answer in self._answer_candidates(problem, reply):
            if self.judge is None:
                right = gold is not None and canonical_form(answer, self.kind, gold=problem.answer) == gold
            else:
                right = self._accepted_by_grader(problem, answer)
            if right:
                return Verdict.RIGHT
        return Verdict.WRONG

    def is_marked(self, problem: Problem, reply: str) -> bool:
        """Return whether the reply has an answer of the task's kind. With a user's grader, every reply counts as marked."""
        return self.judge is not None or canonical_form(reply, self.kind) is not None

    def _accepted_by_grader(self, problem: Problem, answer: str) -> bool:
        assert self.judge is not None
        try:
            judged = self.judge(problem.prompt, problem.answer, answer)
        except Exception:
            if self.last_line:  # it may accept no prose
                return False
            raise
        if type(judged).__name__ not in ("bool", "bool_"):  # numpy's are bools, too
            raise TaskError(
                f"the grader returned {judged!r:.40}, not True or False",
                where=self.grader,
                remedy="Return whether the reply is right, such as `return reply == answer`.",
            )
        return bool(judged)

    def canonical_answer(self, problem: Problem, reply: str) -> str | None:
        return canonical_form(self._answer_candidates(problem, reply)[0], self.kind, gold=problem.answer)

    def _answer_candidates(self, problem: Problem, reply: str) -> list[str]:
        """Return the texts that may be the answer: the whole reply and, with `last_line`, as many last lines as the gold answer has."""
        if not self.last_line or (self.kind == "number" and self.judge is None and last_mark(reply) is not None):
            return [reply]
        lines = [line for line in reply.split("\n") if line.strip() and not line.lstrip().startswith("```")]
        end = "\n".join(lines[-max(1, len([line for line in problem.answer.split("\n") if line.strip()])) :])
        plain = LEAD.sub("", end, count=1).strip("`* ")
        if self.kind == "number" and self.judge is None:
            return [plain]
        if self.kind == "JSON":
            starts = [number for number, line in enumerate(lines) if line.lstrip()[:1] in ("{", "[")]
            return [plain, *("\n".join(lines[number:]) for number in starts), reply]
        return [plain.rstrip(".").strip("*`\"' "), end, final_answer(end), reply]


def canonical_form(text: str, kind: AnswerKind, *, gold: str = "") -> str | None:
    """Return the answer in `text` in the form that is compared with other answers, or None if `text` has no answer of the given kind.

    If `gold` is a number with a leading zero, numbers are compared by their digits instead of their values.
    """
    if kind == "number" and LEADING_ZERO.fullmatch(final_answer(gold)):
        return final_answer(text).rstrip(".") or None
    if kind == "number":
        number = answer_number(text)
        return None if number is None else str(number)
    if kind == "JSON":
        try:
            return json.dumps(_normalize_json(json.loads(text, object_pairs_hook=_dict_of_unique_keys)), sort_keys=True)
        except (ValueError, RecursionError):
            return None
    if kind == "text":
        return " ".join(text.split()) or None
    return normalize_text(text).rstrip(".。") or None


def _normalize_json(value: Any) -> Any:
    if isinstance(value, str):
        return normalize_text(value)
    if isinstance(value, list):
        return [_normalize_json(item) for item in value]
    if isinstance(value, dict):
        return {name: _normalize_json(item) for name, item in value.items() if item is not None}
    exact = (
        isinstance(value, bool) or not isinstance(value, int) or abs(value) > 2**53
    )  # a float cannot hold larger integers
    return value if exact else float(value)


def _dict_of_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict. Raises ValueError for a repeated key, because a repeated key has no single value."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is repeated")
    return dict(pairs)


# ---- files


def write_examples(folder: Path, splits: Mapping[Split, Sequence[Mapping[str, Any]]], facts: Mapping[str, Any]) -> None:
    """Write the folder of an `ExamplesTask` task. `splits` has the rows of each split. A row has a key, line, prompt and
    completion, and optionally reasoning.

    `facts` needs the key `kind`.
    """
    for split, rows in splits.items():
        if split == "test":
            write_atomic(folder / SEALED_FILE, gzip.compress(_rows_to_jsonl(rows), mtime=0))
        else:
            write_atomic(folder / f"{split}.jsonl", _rows_to_jsonl(rows))
    write_json(folder / FACTS_FILE, facts)


def _rows_to_jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(map(json_line, rows))


def folder_has_splits(folder: Path, *, dev: Sequence[Mapping[str, Any]], test: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether `dev` and `test` are the rows of the folder's dev and test splits. The comparison is not recorded as a
    reading of the test split, because the comparison returns no test rows."""
    sealed = gzip.decompress((folder / SEALED_FILE).read_bytes())
    return sealed == _rows_to_jsonl(test) and (folder / "dev.jsonl").read_bytes() == _rows_to_jsonl(dev)


def read_task_json(folder: Path) -> dict[str, Any]:
    """Return the content of `task.json`. Raises DataError if the file is missing or invalid."""
    path = folder / FACTS_FILE
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if facts["kind"] in ("label", "number", "JSON", "text"):
            return facts
        problem = f"unknown kind of answers {facts['kind']!r}"
    except (OSError, ValueError, KeyError, TypeError):
        problem = f"no {FACTS_FILE} of a task"
    raise DataError(problem, where=str(path), remedy="Give the folder `data` that `rorqual teach` wrote.")


def _read_sealed_test_lines(folder: Path) -> list[bytes]:
    path = folder / SEALED_FILE
    try:
        return gzip.decompress(path.read_bytes()).splitlines()
    except OSError as error:
        raise DataError(
            f"the test split cannot be read: {error}", where=str(path), remedy="Run `rorqual teach` again."
        ) from None


def record_test_reading(folder: Path, checkpoint: str) -> None:
    """Append to `openings.jsonl` a record that the test split was read. `checkpoint` is the digest of the measured checkpoint,
    or ""."""
    command = (
        " ".join(["rorqual", *sys.argv[1:3]]) if sys.argv[0].endswith(("rorqual", "rorqual/__main__.py")) else "Python"
    )
    append_line(
        folder / OPENINGS_FILE,
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command,
            "version": rorqual.__version__,
            "checkpoint": checkpoint,
        },
    )


def list_test_readings(folder: Path) -> list[SealedSplitReading]:
    """Return the records of all readings of the test split, oldest first."""
    return [SealedSplitReading(**line) for line in read_lines(folder / OPENINGS_FILE)]


TAKES = {"grader": ("prompt", "answer", "reply"), "rule": ("prompt",)}
"""The arguments with which a user's grader and a user's rule are called."""


def load_function(spec: str, what: Literal["grader", "rule"]) -> Callable[..., Any]:
    """Return the function that `spec` names, such as ./mine.py:function. Raises TaskError if the file has no such function, or if the function
    does not take the arguments in `TAKES`.
    """
    path, _, name = spec.rpartition(":")
    if not path.endswith(".py") or not name:
        raise TaskError(
            f"{spec!r} does not name a function", where=f"key '{what}'", remedy=f"Give {what}=./mine.py:function."
        )
    module = import_file(Path(path), TaskError)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and value.__module__ == module.__name__]
        remedy = suggest_name(name, known) or "Define the function in this file."
        raise TaskError(f"the file has no function '{name}'", where=path, remedy=remedy)
    with suppress(ValueError):  # a builtin function without a signature
        try:
            inspect.signature(function).bind(*TAKES[what])
        except TypeError as error:
            raise TaskError(
                f"the function '{name}' cannot be called with {len(TAKES[what])} arguments: {error}",
                where=path,
                remedy=f"Define it as `def {name}({', '.join(TAKES[what])})`.",
            ) from None
    return function  # type: ignore[no-any-return]
