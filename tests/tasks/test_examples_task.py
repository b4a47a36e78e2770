"""The task of a taught model: grading by kind, splits, and the record of each reading of the test split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rorqual
from rorqual.core.errors import DataError, TaskError
from rorqual.evals.evaluating import evaluate
from rorqual.tasks.examples import ExamplesTask, canonical_form, list_test_readings, load_function, write_examples
from rorqual.tasks.find import load_task, safe_grade
from rorqual.tasks.task import Problem, Verdict

ROW = {"line": 1, "key": "a", "prompt": "A", "completion": "x"}


def folder(tmp_path: Path, kind: str = "label", **splits: list[dict[str, object]]) -> Path:
    data = tmp_path / "data"
    given = {"train": [ROW], "dev": [ROW | {"key": "b"}], "test": [ROW | {"key": "c"}]} | splits
    write_examples(data, given, {"kind": kind})  # type: ignore[arg-type]
    return data


def test_each_split_has_its_rows_and_their_reasoning(tmp_path: Path) -> None:
    data = folder(tmp_path, train=[ROW | {"reasoning": "because"}, ROW | {"key": "d", "line": 7}])
    task = load_task("examples", data=data)
    train = sorted(task.problems("train", 0), key=lambda one: one.key)
    assert [(one.key, one.prompt, one.answer, one.steps) for one in train] == [
        ("a", "A", "x", "because"),
        ("d", "A", "x", None),
    ]
    assert train[1].meta["where"].endswith("line 7 of the file of examples")
    assert [one.key for one in task.problems("dev", 0)] == ["b"] and [one.key for one in task.problems("test", 0)] == [
        "c"
    ]


def test_each_reading_of_the_test_split_is_recorded(tmp_path: Path) -> None:
    data = folder(tmp_path)
    task = ExamplesTask(data)
    list(task.problems("train", 0)), list(task.problems("dev", 0))
    assert list_test_readings(data) == []
    task.checkpoint = "abc"
    list(task.problems("test", 0)), list(task.problems("test", 1))
    assert [(one.checkpoint, one.version) for one in list_test_readings(data)] == [("abc", rorqual.__version__)]
    list(ExamplesTask(data).problems("test", 0))
    first, second = list_test_readings(data)
    assert second.checkpoint == "" and first.time <= second.time


def test_the_test_split_is_no_text_file(tmp_path: Path) -> None:
    data = folder(tmp_path, test=[ROW | {"prompt": "secret words"}])
    assert not any(b"secret" in file.read_bytes() for file in data.iterdir())
    (data / "test.sealed").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"test\.sealed.*cannot be read"):
        list(ExamplesTask(data).problems("test", 0))


@pytest.mark.parametrize(
    ("kind", "gold", "right", "wrong"),
    [
        ("label", "card lost", ["Card  lost", "card lost.", " card lost\n"], ["card", "the card lost", "", "card lost!"]),
        ("number", "1,200", ["1200", "so:\n1200 pens", "$1,200.00", "#### 1200"], ["120", "It is 1200", "1200 or 1201", "", "1201"]),
        ("number", "7", ["7", "007", "So:\n07 pens"], ["70", "0.07"]),
        ("number", "007", ["007", "So:\n007", "#### 007."], ["7", "07", "0007", "7.0", "It is 007"]),
        ("number", "0.7", ["0.7", "0.70", ".7"], ["07", "7"]),
        ("JSON", '{"zip": "01002"}', ['{"zip":"01002"}'], ['{"zip":"1002"}', '{"zip":1002}']),
        ("JSON", '{"a": 1, "b": "X y"}', ['{"b": "x  Y", "a": 1.0}'], ['{"a": 1}', '{"a": 2, "b": "X y"}', "", '{"a": true, "b": "x y"}']),
        ("JSON", '{"a": [1, 2]}', ['{"a":[1,2]}'], ['{"a":[2,1]}', '{"a":"[1,2]"}']),
        ("JSON", '{"a": 9007199254740993}', ['{"a": 9007199254740993}'], ['{"a": 9007199254740992}', '{"a": 1, "a": 9007199254740993}']),
        ("text", "Dear Sir.", ["Dear  Sir.\n"], ["dear sir.", "Dear Sir", ""]),
    ],
)  # fmt: skip
def test_answers_are_compared_by_kind(tmp_path: Path, kind: str, gold: str, right: list[str], wrong: list[str]) -> None:
    task = ExamplesTask(folder(tmp_path, kind))
    problem = Problem("k", "p", gold, "examples")
    assert {reply: task.grade(problem, reply).value for reply in right} == dict.fromkeys(right, "right")
    assert {reply: task.grade(problem, reply).value for reply in wrong} == dict.fromkeys(wrong, "wrong")
    assert not task.is_marked(problem, "") and all(task.is_marked(problem, reply) for reply in right)
    votes = {task.canonical_answer(problem, reply) for reply in (gold, *right)}
    assert len(votes) == 1 and votes.isdisjoint(task.canonical_answer(problem, reply) for reply in wrong)


def test_a_grader_of_the_users_own_gets_prompt_answer_and_reply(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def good(prompt, answer, reply):\n    return (prompt, answer, reply) == ('p', 'a', 'r')\nx = 1\n")
    task = ExamplesTask(folder(tmp_path), grader=f"{mine}:good")
    assert task.grade(Problem("k", "p", "a", "examples"), "r") is Verdict.RIGHT
    assert task.grade(Problem("k", "p", "a", "examples"), "a") is Verdict.WRONG
    for spec, problem in (
        (f"{mine}:bad", "no function 'bad'"),
        (f"{mine}:x", "no function"),
        ("mine", "does not name"),
    ):
        with pytest.raises(TaskError, match=problem):
            load_function(spec, "grader")


GRADERS = """
import numpy as np
def text(prompt, answer, reply): return "no"
def number(prompt, answer, reply): return 1
def nothing(prompt, answer, reply): pass
def array(prompt, answer, reply): return np.equal(len(answer), len(reply))
def two(gold, reply): return gold == reply
def more(prompt, answer, reply, strict=True): return answer == reply
def fails(prompt, answer, reply): return float(reply)
"""


def test_a_grader_returns_true_or_false_for_three_arguments(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(GRADERS)
    problem = Problem("some key", "p", "a", "examples", meta={"where": "rows.csv:7"})

    def graded(name: str) -> Verdict:
        return safe_grade(ExamplesTask(folder(tmp_path), grader=f"{mine}:{name}"), problem, "b")

    assert (graded("array"), graded("more")) == (Verdict.RIGHT, Verdict.WRONG)
    for name, shown in (("text", "'no'"), ("number", "1"), ("nothing", "None")):
        with pytest.raises(TaskError, match=f"the grader returned {shown}, not True or False"):
            graded(name)
    with pytest.raises(
        TaskError, match=r"'two' cannot be called with 3 arguments(.|\n)*`def two\(prompt, answer, reply\)`"
    ):
        graded("two")
    with pytest.raises(
        TaskError, match=rf"the grader, on rows.csv:7, raised ValueError: could not convert .* at {mine}:9"
    ):
        graded("fails")


def test_a_null_is_a_missing_key() -> None:
    assert canonical_form('{"a": 1, "b": null, "c": {"d": null}}', "JSON") == canonical_form(
        '{"a": 1, "c": {}}', "JSON"
    )
    assert canonical_form("[null]", "JSON") != canonical_form("[]", "JSON") and canonical_form(
        '{"a": 0}', "JSON"
    ) != canonical_form("{}", "JSON")


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "no task.json"), ("{}", "no task.json"), ('{"kind": "labels"}', "unknown kind")]
)
def test_a_folder_without_facts_is_refused(tmp_path: Path, content: str | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "task.json").write_text(content)
    with pytest.raises(DataError, match=problem):
        ExamplesTask(tmp_path)


def test_json_of_any_form_has_a_canonical_form_or_none() -> None:
    assert canonical_form("[" * 100_000, "JSON") is None and canonical_form("NaN", "JSON") is not None
    assert canonical_form(json.dumps({"b": [True, None, "A"], "a": 1}), "JSON") == '{"a": 1.0, "b": [true, null, "a"]}'


USERS = """
from rorqual.tasks.task import Problem, Task, Verdict, split_of

class {name}(Task):
    name = "mine"
    def problems(self, split, seed):
        for n in range(400):
            key = str(n)
            if {keep}:
                yield Problem(key=key, prompt=key, answer=key, family="f")
    def grade(self, problem, reply):
        return Verdict.RIGHT if reply == problem.answer else Verdict.WRONG
"""


def test_a_users_task_that_ignores_its_split_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        USERS.format(name="Leaks", keep="True")
        + USERS.format(name="Late", keep="split == 'test' or n < 20 or n > 390")
        + USERS.format(name="Clean", keep="split_of(key, test=0.3) == split")
        + USERS.format(name="TestOnly", keep="split == 'test'")
    )

    class Silent:
        def generate(self, requests, *, progress=None):  # type: ignore[no-untyped-def]
            raise AssertionError("the model was asked")

    for name in ("Leaks", "Late"):
        with pytest.raises(TaskError, match=r"of the first \d+ test problems are also in the train split"):
            evaluate(Silent(), f"{mine}:{name}", count=5)
    cell: dict[str, Any] = {"__name__": "__main__"}
    exec(USERS.format(name="Leaks", keep="True"), cell)  # a notebook's task is no file's
    with pytest.raises(TaskError, match="are also in the train split"):
        evaluate(Silent(), cell["Leaks"](), count=5)
    for name in ("Clean", "TestOnly"):
        with pytest.raises(AssertionError, match="the model was asked"):
            evaluate(Silent(), f"{mine}:{name}", count=5)
