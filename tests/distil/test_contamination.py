"""What is held out to measure on is not asked, and what it met is listed by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sums_task import SUMS, Make

from rorqual.core.errors import ConfigError, DataError
from rorqual.distil.contamination import COMMON, Evaluations, Item, evaluation_items
from rorqual.distil.filters import words
from rorqual.distil.problems import choose

STORY = (
    "Anna has fourteen red apples and gives five of them to her brother who already had twice as many pears as apples"
)


def listed(config_task: str, tmp_path: Path, local: Make, **changes: object) -> tuple[list[str], list[dict[str, str]]]:
    chosen = choose(local(task=config_task, **changes))
    return [p.key for p in chosen.problems], list(chosen.listed())


def test_a_problem_of_the_test_split_is_not_asked_and_named(local: Make, tmp_path: Path) -> None:
    keys, met = listed(SUMS.replace(":Sums", ":Leaky"), tmp_path, local)
    assert keys == ["0+1", "1+2", "2+3", "4+5", "5+6", "6+7"], "another is asked in its place"
    assert [(m["key"], m["by"]) for m in met] == [("3+4", "key")]
    assert met[0]["met"] == "task leaky: '3+4' (test.jsonl:41)"
    keys, met = listed(SUMS, tmp_path, local)
    assert keys == [f"{a}+{a + 1}" for a in range(6)] and not met


def test_a_training_file_that_holds_test_problems_is_named_with_its_line(local: Make, tmp_path: Path) -> None:
    rows = [{"question": f"{STORY}, {i} times?", "answer": f"#### {i}"} for i in range(6)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "test.jsonl").write_text(json.dumps(rows[2]) + "\n", encoding="utf-8")
    keys, met = listed("gsm8k", tmp_path, local, data=str(tmp_path))
    assert (
        len(keys) + len(met)
        == sum(1 for _ in choose(local(task="gsm8k", data=str(tmp_path), problems=99)).problems) + 1
    )
    assert len(met) == 1 and "train.jsonl:3" in met[0]["where"] and "test.jsonl:1" in met[0]["met"]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)train.jsonl:\d: all \d problems meet an evaluation set"):
        listed("gsm8k", tmp_path, local, data=str(tmp_path))


def test_a_file_of_evaluation_items_is_met_by_thirteen_words(local: Make, tmp_path: Path) -> None:
    for name, row in (
        ("a.jsonl", {"prompt": "Please: What is 2 + 3?"}),
        ("b.jsonl", {"messages": [{"role": "user", "content": "what  is 2 + 3 ?"}]}),
    ):
        (tmp_path / name).write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert not listed(SUMS, tmp_path, local, decontaminate=(str(tmp_path / "a.jsonl"),))[1], (
        "too short to be met in part"
    )
    keys, met = listed(SUMS, tmp_path, local, decontaminate=(str(tmp_path / "b.jsonl"),))
    assert [(m["key"], m["met"], m["by"]) for m in met] == [("2+3", f"{tmp_path / 'b.jsonl'}:1", "whole prompt")]
    assert "2+3" not in keys and len(keys) == 6


def test_every_evaluation_set_counts_and_the_tasks_own_test_split(tmp_path: Path, local: Make) -> None:
    for name, key in (("a.jsonl", "2 + 3"), ("b.jsonl", "4 + 5")):
        (tmp_path / name).write_text(json.dumps({"prompt": f"What is {key}?"}) + "\n", encoding="utf-8")
    both = (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))
    keys, met = listed(SUMS.replace(":Sums", ":Leaky"), tmp_path, local, decontaminate=both)
    assert {m["key"] for m in met} == {"2+3", "3+4", "4+5"} and not {"2+3", "3+4", "4+5"} & set(keys)


def test_what_is_no_evaluation_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown task 'gsm9k'"):
        evaluation_items("gsm9k", 0)
    (tmp_path / "x.jsonl").write_text('{"promt": "hi"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"x.jsonl:1: no column prompt"):
        evaluation_items(str(tmp_path / "x.jsonl"), 0)
    with pytest.raises(DataError, match="no such file"):
        evaluation_items(str(tmp_path / "y.jsonl"), 0)
    assert len(evaluation_items(SUMS, 0)) == 40


def test_words_in_a_row_wherever_they_stand() -> None:
    found = Evaluations([Item(STORY + "?", "eval:1")], 13)
    inside = STORY.split()[3:16]
    meeting = found.holds("so " + " ".join(inside).upper() + ", he said")
    assert meeting is not None and meeting.where == "eval:1" and meeting.how == " ".join(inside).lower()
    assert found.holds(" ".join(inside[:12])) is None
    assert found.holds(" ".join([*inside[:6], "other", *inside[6:12]])) is None
    assert found.meets(STORY) and found.meets(STORY + "?")


def test_an_instruction_that_many_items_share_gives_nothing_away() -> None:
    def about(number: int) -> str:
        return f"{STORY} number {number}"

    few = Evaluations([Item(about(i), f"e:{i}") for i in range(COMMON)], 13)
    many = Evaluations([Item(about(i), f"e:{i}") for i in range(COMMON + 1)], 13)
    assert few.meets(about(77)) and not many.meets(about(77)) and many.meets(about(3))
    few.leave_out_common(about(i) for i in range(100, 100 + COMMON + 1))
    assert not few.meets(about(77)) and few.meets(about(3))


@given(st.lists(st.sampled_from("abcde"), min_size=2, max_size=30), st.lists(st.sampled_from("abcde"), max_size=30))
def test_meeting_is_having_a_row_of_words_in_common(item: list[str], text: list[str]) -> None:
    """Against the definition, slowly, with two words in a row."""
    evaluations = Evaluations([Item(" ".join(item), "e")], 2)
    pairs = {tuple(item[i : i + 2]) for i in range(len(item) - 1)}
    slow = any(tuple(text[i : i + 2]) in pairs for i in range(len(text) - 1))
    assert (evaluations.holds(" ".join(text)) is not None) == slow
    assert words(" ".join(item)) == item
