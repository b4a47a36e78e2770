"""Grading stays linear in the length of a reply, whatever it repeats."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from test_pairs import Pair, built

LENGTH = 20_000
PIECES = (
    "1", "1,", "1,111,", "{", "}", "not ", r"\boxed{", r"\boxed{1}", r"\boxed{1} and ", "1 ", "one ", r"\frac{", "-", "1/", "1 or ", "1:", "1=",
    "answer is ", "the answer is 18. ", "is the answer ", "if the answer is ", "Answer: ", "Answer:\n", "answer", "#### ", "<answer>", "<think>",
    "</think>", "True or ", "whether ", "Zoey is a knight. ", "Zoey, ", "Zoey says that ", "knight ", "a\n", "Wait, ", "wait. ",
    "$", "$1$ ", "(",
    "(1) ", "1.", "#", r"\[", r"\begin{", "*", "**1**", " ", "\n", '"', "\\", "because 1 ", "e.g. ",
    "^{", r"\cup", r"\pm", r"\sqrt", "x", "which ", "So 1. ", "That is 1. ",
    "1 hour and 2 minutes ", "A) 1\n", "2x = ", "than ", "base 2 ", "x < ", "not a knight but a knave ", "**1**\n", "Check:\n", "1, ",
)  # fmt: skip
GOLDS: tuple[Pair, ...] = (
    {"task": "gsm8k", "gold": "-7"},
    {"task": "math500", "gold": r"\frac{1}{2}"},
    {"task": "math500", "gold": r"\text{Evelyn}"},
    {"task": "folio", "gold": "False"},
    {"task": "knights", "names": ["Zoey", "Oliver"], "solution": [True, False]},
)


@pytest.mark.parametrize("number", range(len(GOLDS)), ids=lambda n: f"{GOLDS[n]['task']} {GOLDS[n].get('gold', '')}")
def test_a_long_reply_costs_little_processor_time(number: int, tmp_path: Path) -> None:
    """Every other piece is followed by a mark of an answer, in the next task the rest of them."""
    task, (problem,) = built([GOLDS[number]], tmp_path)
    slow = {}
    for place, piece in enumerate(PIECES):
        end = ("", " The answer is")[(number + place) % 2]
        reply = piece * (LENGTH // len(piece)) + end
        began = time.thread_time()
        verdict = task.grade(problem, reply).value
        spent = time.thread_time() - began
        assert verdict != "right", piece
        if spent > 5:
            slow[piece + end] = spent
    assert not slow


def test_a_whole_box_of_any_length_costs_little(tmp_path: Path) -> None:
    task, (problem,) = built([GOLDS[1]], tmp_path)
    for inside in ("1," * 50_000, "(" * 50_000, "x" * 100_000, "1+" * 50_000 + "1", r"\frac{" * 8000 + "}" * 8000):
        began = time.thread_time()
        assert task.grade(problem, rf"\boxed{{{inside}}}").value != "right"
        assert time.thread_time() - began < 5
