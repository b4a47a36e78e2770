"""Make a data set from a checked file: leave out faulty rows, and divide the other rows into train, dev and test."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rorqual.core.errors import DataError
from rorqual.core.rows import scan_rows
from rorqual.tasks.examples import AnswerKind
from rorqual.tasks.file_task import normalize_text
from rorqual.tasks.task import Split
from rorqual.teach.answer_format import derive_worked_solution, infer_json_schema, label_spellings, sort_keys_by_schema
from rorqual.teach.check import NO_NUMBER, WARNINGS, FileCheck
from rorqual.teach.example_table import read_table
from rorqual.teach.examples import FEWEST_EXAMPLES, GIVE_MORE, Example, canonical_answer
from rorqual.teach.folds import DEV, TEST, content_hash, divide, near_duplicate_groups, split_of_fold

MOST_ROWS, MOST_BYTES = 200_000, 200_000_000
"""Maximum number of rows of a file of examples, and maximum number of bytes of a JSON file. A JSON file is read as a whole."""
SAMPLE_ROWS = "Give a random sample of the rows. A small model learns little from more."
FEWEST_HELD_OUT: Mapping[Split, int] = {"dev": 3, "test": 5}
MOST_FAULTY = 0.2
"""`teach` stops if more than the share `MOST_FAULTY` of the rows has faults."""
DERIVED = 0.5
"""Derived worked solutions are used if at least the share `DERIVED` of the training examples has one (see `derive_worked_solution`)."""


@dataclass(frozen=True)
class Dataset:
    """The examples of each split. `left_out` has, for each reason to leave out a row, the number of rows. `derived` is the
    number of worked solutions that were derived from the numbers of the prompt. `pool` has all examples of the training and dev
    splits, also those without a derived solution, and `fold` [pool] their folds for cross-validation. Fold `folds.DEV` is the
    dev split."""

    splits: Mapping[Split, Sequence[Example]]
    kind: AnswerKind
    pool: Sequence[Example]
    fold: NDArray[np.int64]
    left_out: Mapping[str, int]
    derived: int = 0

    @property
    def all_train(self) -> Sequence[Example]:
        """All training examples, also those without a derived solution."""
        return [one for one, fold in zip(self.pool, self.fold, strict=True) if fold != DEV]


def refuse_too_large_file(path: Path) -> None:
    """Raise DataError if the file cannot be read, or is too large for `teach`."""
    if path.suffix.lower() == ".json" and path.is_file() and path.stat().st_size > MOST_BYTES:
        raise DataError(f"more than {MOST_BYTES / 1e6:,.0f} MB of JSON", where=str(path), remedy=SAMPLE_ROWS)
    if sum(1 for _ in islice(scan_rows(path), MOST_ROWS + 1)) > MOST_ROWS:
        raise DataError(f"more than {MOST_ROWS:,} rows", where=str(path), remedy=SAMPLE_ROWS)


def usable_examples(check: FileCheck, *, graded: bool = False) -> tuple[list[Example], dict[str, int]]:
    """Return the examples to use, and the number of rows that are left out for each reason. Faulty rows, repeated rows, and all
    rows that contradict each other are left out.

    With `graded`, an answer that is not a number is no fault, because the user's grader decides about answers. Raises DataError
    if too many rows are faulty, or if too few rows remain.
    """
    kept_kinds = WARNINGS | ({NO_NUMBER} if graded else set())
    reasons = {fault.line: fault.kind for fault in check.faults if fault.kind not in kept_kinds}
    at_fault = {line for fault in check.faults if fault.kind == "contradiction" for line in (fault.line, fault.other)}
    contradicted = {one.key for one in check.examples if one.line in at_fault}
    kept: dict[str, Example] = {}
    for one in check.examples:
        if one.key in contradicted:
            reasons.setdefault(one.line, "contradiction")
        elif one.line not in reasons and kept.setdefault(one.key, one) is not one:
            reasons[one.line] = "duplicate"
    left_out = Counter(reasons.values())
    _refuse_faulty(check, left_out, len(kept))
    return list(kept.values()), dict(left_out)


def _refuse_faulty(check: FileCheck, left_out: Mapping[str, int], kept: int) -> None:
    faulty = Counter({reason: number for reason, number in left_out.items() if reason not in WARNINGS})
    if faulty.total() > MOST_FAULTY * check.rows:
        most = ", ".join(f"{number:,} {reason}" for reason, number in faulty.most_common())
        raise DataError(
            f"{faulty.total():,} of {check.rows:,} rows cannot be used: {most}",
            where=str(check.path),
            remedy=f"See `rorqual check {check.path}`, and fix or remove these rows.",
        )
    if kept < FEWEST_EXAMPLES:
        raise DataError(f"only {kept:,} usable examples", where=str(check.path), remedy=GIVE_MORE)


def divide_examples(
    check: FileCheck,
    test: Sequence[Example] | None,
    *,
    count: int,
    reason_against: Callable[[Example], str] = lambda _: "",
    graded: bool = False,
) -> Dataset:
    """Return the splits of a checked file. The test split has the examples `test`. If `test` is None, the test split is a part
    of the file.

    Rows with a fault, repeated rows, and all rows that contradict each other are left out. Examples for which `reason_against`
    returns a text other than "" are left out, too. With `graded`, an answer that is not a number is no fault, because the
    user's grader decides about answers. At most `count` examples are in the test split. Raises DataError if too many rows are
    faulty, or if too few rows remain.
    """
    kept, left_out = usable_examples(check, graded=graded)
    if check.kind == "label":  # the grammar allows one spelling of each label
        forms = label_spellings(kept)
        kept = _respell_answers(kept, forms)
        test = None if test is None else _respell_answers(test, forms)
    against = {one.line: reason for one in kept if (reason := reason_against(one))}
    kept = [one for one in kept if one.line not in against]
    left_out |= Counter(against.values())
    _refuse_faulty(check, left_out, len(kept))
    unusable = [reason for one in test or () if (reason := reason_against(one))]
    if test is not None and unusable:
        if len(unusable) > MOST_FAULTY * len(test):
            raise DataError(
                f"{len(unusable):,} of {len(test):,} test rows cannot be used; the first: {unusable[0]}",
                where=str(check.against),
                remedy="Fix or remove these rows.",
            )
        left_out["unusable test row"] = len(unusable)
        test = [one for one in test if not reason_against(one)]
    fold = divide(kept, check.kind, near_duplicate_groups(kept), has_test_file=test is not None)
    tests = test or [one for one, number in zip(kept, fold, strict=True) if number == TEST]
    pool = [one for one, number in zip(kept, fold, strict=True) if number != TEST]
    fold = fold[fold != TEST]
    if check.kind == "JSON":
        # The order of keys is that of the training examples, because the grammar has it.
        train_first = np.argsort(fold == DEV, kind="stable")
        schema = infer_json_schema([json.loads(pool[place].answer) for place in train_first])
        pool = [replace(one, answer=order_keys(one.answer, schema)) for one in pool]
    splits: dict[Split, list[Example]] = {"train": [], "dev": [], "test": sorted(tests, key=content_hash)[:count]}
    for one, number in zip(pool, fold, strict=True):
        splits[split_of_fold(number)].append(one)
    _refuse_small_splits(check, splits, has_test_file=test is not None)
    train = splits["train"]
    derivable = check.kind == "number" and not any(one.reasoning for one in kept)
    solutions = [derive_worked_solution(one) for one in train if derivable]
    derived = sum(map(bool, solutions))
    if not derived or derived < DERIVED * len(train):
        return Dataset(splits, check.kind, pool, fold, left_out)
    splits["train"] = [replace(one, reasoning=steps) for one, steps in zip(train, solutions, strict=True) if steps]
    if derived < len(train):
        left_out["without one clear calculation, which the language model would learn"] = len(train) - derived
    return Dataset(splits, check.kind, pool, fold, left_out, derived)


def _respell_answers(examples: Sequence[Example], forms: Mapping[str, str]) -> list[Example]:
    return [replace(one, answer=forms.get(normalize_text(one.answer), one.answer)) for one in examples]


def order_keys(answer: str, schema: Mapping[str, Any]) -> str:
    """Return a JSON answer with keys in the order of the schema. Spaces are left out, because an answer without spaces has
    fewer tokens."""
    return json.dumps(sort_keys_by_schema(json.loads(answer), schema), ensure_ascii=False, separators=(",", ":"))


def _refuse_small_splits(check: FileCheck, splits: Mapping[Split, Sequence[Example]], *, has_test_file: bool) -> None:
    if has_test_file and len(splits["test"]) < FEWEST_HELD_OUT["test"]:
        raise DataError(
            f"the test file has only {len(splits['test'])} usable examples",
            where=str(check.against),
            remedy="Give more test examples.",
        )
    for split, fewest in FEWEST_HELD_OUT.items():
        if len(splits[split]) < fewest:
            raise DataError(
                f"the {split} split has too few examples, because near-duplicates stay in one split",
                where=str(check.path),
                remedy=f"{GIVE_MORE} `rorqual check` lists the near-duplicates.",
            )
    if check.kind != "JSON" and len({one.answer for one in splits["train"]}) == 1:
        raise DataError(
            f"all answers are the same: {splits['train'][0].answer!r:.60}",
            where=str(check.path),
            remedy="There is nothing to learn. Give examples with different answers.",
        )


def read_test_file(
    path: Path, kind: AnswerKind, *, prompt: str, answer: str, reasoning: str, system: str = ""
) -> list[Example]:
    """Return the usable examples of a test file, one for each prompt. `kind` is the kind of answers of the training file, and
    `system` is the common system message of the training file."""
    table = read_table(path, prompt=prompt, answer=answer, reasoning=reasoning, system=system)
    if table.faults:
        raise DataError(
            f"{len(table.faults):,} rows cannot be read; the first: {table.faults[0].text}",
            where=f"{path}:{table.faults[0].line}",
            remedy="Fix or remove these rows: a test set must be whole.",
        )
    first: dict[str, Example] = {}
    for one in table.examples:
        before = first.setdefault(one.key, one)
        if kind != "text" and canonical_answer(before, kind) != canonical_answer(one, kind):
            raise DataError(
                f"the same prompt as line {before.line}, but another answer: {one.answer!r:.60}, not {before.answer!r:.60}",
                where=f"{path}:{one.line}",
                remedy="Remove one of the rows: a test set must not contradict itself.",
            )
    return list(first.values())


def rows_of(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Return the examples of a split as rows of a JSONL file. An example of several turns has them as `messages`, too."""
    rows = []
    for one in examples:
        row: dict[str, Any] = {"line": one.line, "key": one.key, "prompt": one.prompt, "completion": one.answer}
        row |= {"reasoning": one.reasoning} if one.reasoning else {}
        row |= {"told": True} if one.told else {}
        if len(one.turns) > 1:
            reply = {"role": "assistant", "content": one.answer} | (
                {"reasoning": one.reasoning} if one.reasoning else {}
            )
            row["messages"] = [*({"role": turn.role, "content": turn.label} for turn in one.turns), reply]
        rows.append(row)
    return rows
