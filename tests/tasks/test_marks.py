"""Marks: what a reply marks as its answer, and what is no mark."""

from __future__ import annotations

import time

import pytest

from rorqual.tasks.answer_marks import ALONE, ANSWER, BOXED, HASHES, TAG, AnswerMark, last_line, last_mark

KINDS: dict[str, AnswerMark] = {"boxed": BOXED, "hashes": HASHES, "answer": ANSWER, "tag": TAG, "alone": ALONE}
EXPLICIT = [name for name in KINDS if name != "alone"]


@pytest.mark.parametrize("name", KINDS)
def test_what_a_task_writes_in_its_mark_is_found_again(name: str) -> None:
    mark = KINDS[name]
    for answer in ("18", "-1,234.5", "True", r"\frac{1}{2}", r"\{1, 2\}", "Zoey is a knight. Max is a knave"):
        assert mark.find(mark.mark_answer(answer)) == answer
        assert mark.find(f"<think>{mark.mark_answer('7')}</think>\n {mark.mark_answer(answer)}\n") == answer
    assert mark.prompt_for_mark("1 + 1?", "NUMBER").startswith("1 + 1?\n")
    assert mark.prompt_for_mark("1 + 1?", "NUMBER").endswith(mark.mark_answer("NUMBER"))
    assert mark.find("") is None and mark.find(mark.mark_answer("")) is None


@pytest.mark.parametrize("name", EXPLICIT)
def test_the_last_mark_counts_and_contradictions_in_one_sentence_do_not(name: str) -> None:
    write, find = KINDS[name].mark_answer, KINDS[name].find
    assert find(f"First {write('3')}\nThen {write('4')}\nbye") == "4"
    assert find(f"It is {write('3')}. No, it is {write('4')}") == "4"
    assert find(f"It is {write('3')} not {write('4')}") is None
    assert find("It is 4, the answer is 4, boxed{4}, ### 4, <answer>4") is None


@pytest.mark.parametrize(
    ("name", "reply", "found"),
    [
        ("boxed", r"so \boxed{\frac{1}{2}} or", r"\frac{1}{2}"),
        ("boxed", r"\boxed{1} and \boxed{2", "1"),
        ("boxed", r"\boxed{1} and \boxed{2}", "1, 2"),
        ("boxed", r"$x = \boxed{1}$ or $x = \boxed{2}$", "1, 2"),
        ("boxed", r"\boxed{\boxed{5}}", "5"),
        ("boxed", r"\boxed {5}", "5"),
        ("boxed", r"\fbox{5}", None),
        ("hashes", "####18", "18"),
        ("hashes", "so\n#### **$18**.\nBye.", "$18"),
        ("hashes", "##### 18", None),
        ("hashes", "#### 3\n#### 4\n", "4"),
        ("answer", "**Answer:** True", "True"),
        ("answer", "**Final Answer**: *True*", "True"),
        ("answer", "ANSWER:\n\nTrue\nbecause", "True"),
        ("answer", "The answer is True", None),
        ("answer", "Answer: 1\n\nAnswer:", None),
        ("tag", "<ANSWER>\n 5\n</ANSWER>", "5"),
        ("tag", "<answer>4<answer>5</answer>", "5"),
        ("tag", r"<answer>$\boxed{5}$</answer>", "5"),
        ("tag", "<answer>5", None),
        ("alone", " **True**. \n", "True"),
        ("alone", "<think>5", None),
    ],
)
def test_a_mark_beside_its_nearest_twin(name: str, reply: str, found: str | None) -> None:
    assert KINDS[name].find(reply) == found


def test_the_last_mark_of_any_kind_and_the_last_line() -> None:
    assert last_mark(r"#### 3 but \boxed{4}") == "4" and last_mark("\\boxed{4}\n#### 3") == "3"
    assert last_mark("I cannot") is None
    assert last_line("a\n\n b \n \n") == "b" and last_line("<think>a") == ""


LENGTH = 20_000
PIECES = ("1", "{", "}", r"\boxed{", r"\boxed{1}", r"\boxed{1} and ", "#### ", "Answer: ", "Answer:\n", "answer", "<answer>", "</answer>",
          "<answer>1</answer>", "<think>", "</think>", "*", "$", r"\(",
          r"\[", " ", "\n", "\\", "a.) ", ". ", "1,111,", "1/", r"\frac{")  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_long_reply_costs_little_time(name: str) -> None:
    for piece in PIECES:
        for end in ("", KINDS[name].mark_answer("5")):
            began = time.thread_time()
            KINDS[name].find(piece * (LENGTH // len(piece)) + end)
            assert time.thread_time() - began < 4, piece
