"""A user's own conversations as a task: the last assistant's turn is the gold answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rorqual.core.errors import ConfigError, DataError, TaskError
from rorqual.core.records import Message
from rorqual.core.rows import read_rows
from rorqual.tasks.file_task import SAMPLES, files_whose_name_contains
from rorqual.tasks.find import check_gold, load_task, safe_problems
from rorqual.tasks.task import Verdict

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How many legs have 3 spiders?"},
    {"role": "assistant", "content": "<think>8 each</think>Eight each:\n#### 24"},
]
ROWS: list[dict[str, Any]] = [
    {"messages": TURNS},
    {"prompt": "Capital of France?", "completion": "Paris"},
    {"question": "2+2?", "answer": "Answer: 4."},
]


def written(path: Path, rows: list[Any]) -> Path:
    path.write_bytes(b"\n".join(json.dumps(row).encode() for row in rows))
    return path


def test_gold_is_right_and_another_rows_is_wrong(tmp_path: Path) -> None:
    task = load_task("messages", data=written(tmp_path / "mine.jsonl", ROWS))
    problems = list(task.problems("test", 0))
    assert len(problems) == 3
    check_gold(task, problems)
    for p in problems:
        assert all(task.grade(p, q.answer) is Verdict.WRONG for q in problems if q is not p)
        assert task.grade(p, "") is Verdict.WRONG


def test_what_is_asked_is_all_that_stands_before_the_answer(tmp_path: Path) -> None:
    task = load_task("messages", data=written(tmp_path / "mine.jsonl", ROWS[:1]))
    (problem,) = task.problems("test", 0)
    assert problem.messages == (Message("system", "Be brief."), Message("user", "How many legs have 3 spiders?"))
    assert problem.answer == "Eight each:\n#### 24"
    for reply, right in (
        ("24", True),
        ("\\boxed{24}", True),
        ("So:\n24.0 legs", True),
        ("24 or 25", False),
        ("It is 24", False),
    ):
        assert (task.grade(problem, reply) is Verdict.RIGHT) == right == task.is_marked(problem, reply), reply
    assert task.grade_last(problem, "It is 24") is Verdict.RIGHT and task.versions == {"messages": 2}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": TURNS[:2]}, "does not end with"),
        ({"messages": TURNS[2:]}, "does not end with"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "unknown role 'robot'"),
        ({"text": "x"}, "not a conversation: the keys are text"),
    ],
)
def test_a_row_that_asks_nothing_is_named_by_its_line(tmp_path: Path, row: Any, fault: str) -> None:
    file = written(tmp_path / "mine.jsonl", [ROWS[1], row])
    with pytest.raises(DataError, match=rf"mine\.jsonl:2: .*{fault}"):
        list(load_task("messages", data=file).problems("test", 0))


def test_it_needs_a_file() -> None:
    with pytest.raises(ConfigError, match="needs a file"):
        load_task("messages")


def test_a_gold_answer_that_says_nothing_is_ungraded(tmp_path: Path) -> None:
    task = load_task(
        "messages", data=written(tmp_path / "mine.jsonl", [{"prompt": "x", "completion": "<think>a</think>"}])
    )
    (problem,) = task.problems("test", 0)
    assert task.grade(problem, "anything") is Verdict.UNGRADED


@pytest.mark.parametrize("name", ["gsm8k", "folio", "knights", "math500"])
@pytest.mark.parametrize("value", [None, 3, "", " ", [1], {"a": 1}, [None]])
def test_any_field_of_a_files_row_may_be_anything(tmp_path: Path, name: str, value: Any) -> None:
    """A column at a time: the row is read, or named."""
    row = next(
        read_rows(files_whose_name_contains(SAMPLES / name, "validation" if name == "folio" else "test")[0])
    ).values
    for column in row:
        file = written(tmp_path / f"{column}-test.jsonl", [row | {column: value}])
        try:
            list(safe_problems(load_task(name, data=file), "test", 0))
        except (DataError, TaskError) as error:
            assert f"{file}:1" in str(error) and error.remedy, column
