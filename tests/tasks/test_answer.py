"""Helpers for users' graders, and the process that compares mathematics: failures of the grader are never a score."""

from __future__ import annotations

import threading
import time
from fractions import Fraction

import pytest

from rorqual.tasks import expressions
from rorqual.tasks.answer import answer_number, final_answer, final_number, math_equal
from rorqual.tasks.task import Verdict

R, W, U = Verdict.RIGHT, Verdict.WRONG, Verdict.UNGRADED
ENDLESS = r"\int_0^1 {}({}(x^{{9}})) e^{{x^3}} \tan(x^4)^{{x}} dx"


def test_without_a_mark_the_last_line_is_the_answer() -> None:
    assert final_answer("first\n\n $12$ \n") == "12" and final_answer("") == ""
    assert final_answer("#### 3\nbye") == "3"


@pytest.mark.parametrize(
    ("text", "number", "alone"),
    [
        ("#### 18\nbye 2", 18, 18), ("18 or 19", 19, None), ("#### 18 or 19", None, None), ("It is 18", 18, None),
        ("so:\n3/4 cup", Fraction(3, 4), Fraction(3, 4)),
        ("<think>3</think>none", None, None), (r"\boxed{50\%}", 50, 50),
    ],
)  # fmt: skip
def test_the_final_number_is_marked_or_last_and_the_answer_number_alone(
    text: str, number: Fraction | int | None, alone: Fraction | int | None
) -> None:
    assert (final_number(text), answer_number(text)) == (number, alone)


@pytest.mark.parametrize("gold", ["", "  ", r"\begin{", r"\frac{", "{{{"])
def test_a_gold_answer_that_does_not_parse_is_never_right(gold: str) -> None:
    assert {math_equal(gold, reply) for reply in (gold, f"\\boxed{{{gold}}}", "1", "")} == {U}
    assert math_equal(r"\frac{1}{2}", r"\boxed{\frac{1}{2}}", timeout=60) is R  # its nearest valid twin


def test_a_comparison_that_takes_too_long_is_ungraded() -> None:
    began = time.monotonic()
    reply = "\\boxed{" + ENDLESS.format(r"\cos", r"\sin") + "}"
    assert math_equal(ENDLESS.format(r"\sin", r"\cos"), reply, timeout=1) is U
    assert time.monotonic() - began < 60
    assert math_equal("x+1", "1+x", timeout=60) is R


def test_a_process_that_dies_is_ungraded_and_replaced() -> None:
    assert math_equal("x+1", "1+x", timeout=60) is R
    process = expressions.COMPARER.process
    assert process is not None
    process.kill()
    process.wait()
    assert math_equal("x+1", "1+x", timeout=60) is R and expressions.COMPARER.process is not process


def test_threads_get_the_verdicts_of_their_own_questions() -> None:
    cases = [(f"x+{n}", f"{n + n % 2}+x", W if n % 2 else R) for n in range(12)]
    found: dict[int, Verdict] = {}

    def ask(number: int) -> None:
        gold, reply, _ = cases[number]
        found[number] = math_equal(gold, reply, timeout=60)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(cases))] == [verdict for *_, verdict in cases]


def test_a_box_of_any_length_costs_little() -> None:
    for inside in ("1," * 50_000, "(" * 50_000, "x" * 100_000, "1+" * 50_000 + "1", r"\frac{" * 8000 + "}" * 8000):
        began = time.monotonic()
        assert math_equal(r"\frac{1}{2}", rf"\boxed{{{inside}}}", timeout=60) is not R
        assert time.monotonic() - began < 20
