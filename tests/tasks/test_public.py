"""Public data: on the shipped samples a gold answer is right on 100 %, another problem's answer wrong on 100 %."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rorqual.core.errors import DataError
from rorqual.tasks.find import check_gold
from rorqual.tasks.folio import Folio
from rorqual.tasks.gsm8k import Gsm8k
from rorqual.tasks.knights import Knights
from rorqual.tasks.math500 import Math500
from rorqual.tasks.task import Problem, Split, Task, Verdict

TASKS: tuple[type[Any], ...] = (Gsm8k, Math500, Folio, Knights)
ALL = pytest.mark.parametrize("make", TASKS, ids=lambda t: t.name)


def every(task: Task) -> list[Problem]:
    splits: tuple[Split, ...] = ("test",) if isinstance(task, Math500) else ("train", "dev", "test")
    return [p for split in splits for p in task.problems(split, 0)]


@ALL
def test_gold_is_right_and_a_mismatched_gold_is_wrong(make: type[Task]) -> None:
    task = make()
    problems = every(task)
    assert len(problems) >= 30
    check_gold(task, problems)
    for p, q in itertools.product(problems, problems[:12]):
        if p.answer != q.answer:
            assert task.grade(p, q.answer) is Verdict.WRONG, (p.answer, q.answer)
        assert task.grade(p, "") is Verdict.WRONG


@ALL
def test_order_is_fixed_by_the_seed_and_splits_are_disjoint(make: type[Task]) -> None:
    task = make()
    assert list(task.problems("test", 1)) == list(task.problems("test", 1)) != list(task.problems("test", 2))
    assert sorted(p.key for p in task.problems("test", 1)) == sorted(p.key for p in task.problems("test", 2))
    if make is not Math500:
        keys = [{p.key for p in task.problems(split, 0)} for split in ("train", "dev", "test")]
        assert all(keys) and sum(map(len, keys)) == len(set().union(*keys))


def test_folio_shares_no_story_between_train_and_dev() -> None:
    stories = [{p.meta["story"] for p in Folio().problems(split, 0)} for split in ("train", "dev")]
    assert not stories[0] & stories[1]


@ALL
def test_the_prompt_says_the_mark_and_without_it_a_right_answer_is_unmarked(make: type[Any]) -> None:
    task = make()
    for problem in every(task):
        value = task.mark.find(problem.answer)
        assert task.mark.find(problem.prompt) in (
            "NUMBER",
            "EXPRESSION",
            "True, False or Uncertain",
            "NAME is a knight. NAME is a knave",
        )
        assert (task.grade(problem, value), task.is_marked(problem, value)) == (Verdict.WRONG, False)
        assert task.grade_last(problem, f"So it is: {f'${value}$' if make is Math500 else value}") is Verdict.RIGHT
        assert task.grade(problem, problem.answer) is Verdict.RIGHT and task.is_marked(problem, problem.answer)
        assert problem.version == 2 == task.versions[task.name]
        other = task.canonical_answer(problem, problem.answer)
        assert other is not None and task.canonical_answer(problem, value) is None


def test_knights_people_option() -> None:
    assert {len(p.meta["names"]) for p in Knights(people=3).problems("test", 0)} == {3}
    assert {len(p.meta["names"]) for p in Knights(people=(4, 5)).problems("test", 0)} == {4, 5}


def test_folio_reads_unknown_as_uncertain() -> None:
    problems = every(Folio())
    assert {p.answer for p in problems} == {f"Answer: {label}" for label in ("True", "False", "Uncertain")}
    unsure = next(p for p in problems if p.answer == "Answer: Uncertain")
    assert Folio().grade(unsure, "Answer: Unknown") is Verdict.RIGHT is Folio().grade_last(unsure, "It is unknown.")


def test_a_label_is_the_answer_or_the_pattern_of_roles() -> None:
    for task in (Folio(), Gsm8k()):
        assert all(task.label(problem) == problem.answer for problem in task.problems("test", 0))
    problems = list(Knights(people=3).problems("test", 0))
    labels = [Knights().label(problem) for problem in problems]
    assert len({p.answer for p in problems}) == len(problems) and len(set(labels)) <= 8
    assert labels == [str(p.meta["solution"]) for p in problems]


# Files of one's own: poisons, each with its nearest valid twin.

GOOD: Mapping[str, Mapping[str, Any]] = {
    "gsm8k": {"question": "1+1?", "answer": "It is 2.\n#### 2"},
    "folio": {"premises": ["All x are y."], "conclusion": "x is y.", "label": "True"},
    "knights": {
        "quiz": "?", "names": ["Al"], "solution": [True], "statements": "(1,)", "cot_head": "", "cot_repeat_steps": [], "cot_foot": "",
    },
}  # fmt: skip
MAKE = {"gsm8k": Gsm8k, "folio": Folio, "knights": Knights}
BAD = {
    "gsm8k": {"answer": "It is two.\n#### two"},
    "folio": {"label": "Perhaps"},
    "knights": {"solution": [True, False]},
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def numbered(name: str, n: int) -> list[dict[str, Any]]:
    unique = {"gsm8k": "question", "folio": "conclusion", "knights": "statements"}[name]
    return [{**GOOD[name], unique: f"{GOOD[name][unique]} {i}"} for i in range(n)]


@pytest.mark.parametrize("name", GOOD)
def test_an_unusable_gold_answer_is_refused_in_training_and_ungraded_in_evaluation(name: str, tmp_path: Path) -> None:
    good, bad = numbered(name, 3), {**GOOD[name], **BAD[name]}
    train = write(tmp_path / "train.jsonl", *good, bad)
    with pytest.raises(DataError, match=r"train\.jsonl:4"):
        list(MAKE[name](train).problems("train", 0))
    assert list(MAKE[name](write(tmp_path / "train.jsonl", *good)).problems("train", 0))

    task = MAKE[name](write(tmp_path / "test.jsonl", *good, bad))
    verdicts = [task.grade(p, p.answer) for p in task.problems("test", 0)]
    assert sorted(v.value for v in verdicts) == ["right"] * 3 + ["ungraded"]
    with pytest.raises(DataError, match=r"test\.jsonl:4"):
        check_gold(task, task.problems("test", 0))


def test_math500_without_a_usable_gold_is_ungraded(tmp_path: Path) -> None:
    rows = [
        {"problem": "a", "answer": "\\frac{"},
        {"problem": "b", "answer": "\\frac{1}{2}", "level": 5, "subject": "algebra"},
    ]
    task = Math500(write(tmp_path / "test.jsonl", *rows))
    assert {(p.family, p.level) for p in task.problems("test", 0)} == {("math500", ""), ("algebra", "5")}
    assert {p.prompt[0]: task.grade(p, p.answer) for p in task.problems("test", 0)} == {
        "a": Verdict.UNGRADED,
        "b": Verdict.RIGHT,
    }
    with pytest.raises(DataError, match="evaluation"):
        list(task.problems("train", 0))


def test_missing_files_and_the_wrong_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither"):
        list(Gsm8k(tmp_path / "nowhere").problems("test", 0))
    with pytest.raises(DataError, match="has no"):
        list(Gsm8k(tmp_path).problems("test", 0))
    measure = write(tmp_path / "mine.jsonl", GOOD["gsm8k"])
    with pytest.raises(DataError, match="holds the split 'test', not"):
        list(Gsm8k(measure).problems("train", 0))
    assert len(list(Gsm8k(measure).problems("test", 0))) == 1


def test_math500_passes_its_timeout_on(tmp_path: Path) -> None:
    """A comparison without end takes as much processor time as it is given."""
    hard = r"\int_0^1 {}({}(x^{{9}})) e^{{x^3}} \tan(x^4)^{{x}} dx"
    answer, reply = hard.format(r"\cos", r"\sin"), hard.format(r"\sin", r"\cos")
    file = write(tmp_path / "test.jsonl", {"problem": "?", "answer": answer})
    task = Math500(file, timeout=1)
    (problem,) = task.problems("test", 0)
    began = time.monotonic()
    assert task.grade(problem, rf"\boxed{{{reply}}}") is Verdict.UNGRADED
    assert time.monotonic() - began < 4
