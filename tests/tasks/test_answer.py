"""Answers: what is found in a reply, and that failures of the grader are never a score."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
from fractions import Fraction

import pytest

from rorqual.tasks.answer import boxed, final_answer, final_number, label, marked, math_equal, parses, whole_number
from rorqual.tasks.base import Verdict

R, W, U = Verdict.RIGHT, Verdict.WRONG, Verdict.UNGRADED


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{\frac{1}{2}} or", r"\frac{1}{2}"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{}", ""),
        ("nothing", None),
    ],
)
def test_the_last_whole_box_counts(text: str, found: str | None) -> None:
    assert boxed(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1 + 1 = 2\n#### 2", "2"),
        ("The answer is 7. ", "7"),
        ("Answer: $x$\n", "$x$"),
        (r"#### 3 but \boxed{4}", "4"),
        ("I cannot", None),
    ],
)
def test_marks(text: str, found: str | None) -> None:
    assert marked(text) == found


def test_without_a_mark_the_last_line_is_the_answer() -> None:
    assert final_answer("first\n\n $12$ \n") == "12"
    assert final_answer("") == ""


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", 18), ("$1,080", 1080), ("#### 2,520,000", 2520000), ("-5", -5), ("10-3", 3), ("it is 72.00.", 72), ("72.", 72),
        ("3/4", Fraction(3, 4)), (".5", Fraction(1, 2)), ("−4", -4), ("first 3, then 4 of them", 4), ("1,2", None), ("12,34", None),
        (r"\boxed{5} since 6", 5), ("The answer is unclear: 9 or so", None), ("", None), ("none", None), ("5/0", None), (r"\$1{,}000", 1000),
    ],
)  # fmt: skip
def test_final_number(text: str, number: Fraction | int | None) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"), [("1,234", 1234), (" $5 ", 5), ("5 apples", None), ("1,23", None), ("", None)]
)
def test_whole_number_is_a_number_and_nothing_else(text: str, number: int | None) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("True", "True"), ("It is false.", "False"), ("True or False?\nUncertain", "Uncertain"), ("untrue", None), ("True and False", None),
        ("The answer is False, not True\nAnswer: True", "True"), ("", None),
    ],
)  # fmt: skip
def test_label(text: str, found: str | None) -> None:
    assert label(text, ("True", "False", "Uncertain")) == found


@pytest.mark.parametrize(
    ("gold", "reply", "verdict"),
    [
        (r"\frac{1}{2}", r"\boxed{0.5}", R),
        (r"\frac{1}{2}", "1/2", R),
        (r"\frac{1}{2}", r"\boxed{\frac{1}{3}}", W),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\left( 3, \frac{\pi}{2} \right)", R),
        (r"\left( 3, \frac{\pi}{2} \right)", r"It is \boxed{(3, \pi/2)}.", R),
        ("2", r"\left( 3, \frac{\pi}{2} \right)", W),
        ("x^2 - 1", "$(x-1)(x+1)$", R),
        ("x^2 - 1", "$(x-1)(x+2)$", W),
        ("12", "She has 12 apples left", R),
        ("12", "She has 13 apples left", W),
        ("12", "", W),
        ("12", r"\boxed{", W),
    ],
)
def test_math_equal(gold: str, reply: str, verdict: Verdict) -> None:
    assert math_equal(gold, reply, timeout=60) is verdict


@pytest.mark.parametrize("gold", ["", "  ", r"\begin{", r"\frac{", "{{{"])
def test_a_gold_answer_that_does_not_parse_is_never_right(gold: str) -> None:
    for reply in (gold, f"\\boxed{{{gold}}}", "1", ""):
        assert math_equal(gold, reply) is not R
    assert math_equal(gold, gold) is U
    assert not parses(gold)
    assert parses(r"\frac{1}{2}")  # its nearest valid twin


def test_a_comparison_that_takes_too_long_is_ungraded() -> None:
    began = time.monotonic()
    hard = r"\boxed{\int_0^1 \sin(\cos(x^{7})) e^{x^5} \tan(x^2)^{x} dx}"
    verdict = math_equal(r"\int_0^1 \cos(\sin(x^{9})) e^{x^3} \tan(x^4)^{x} dx", hard, timeout=1)
    assert verdict is U
    assert time.monotonic() - began < 30


class Deaf:
    """Deleted in a loop of references, it works for a while in what the garbage collection calls: Python prints and drops what is raised
    there, as it did with the one strike of math-verify's clock, and the comparison went on without one."""

    def __init__(self, seconds: float) -> None:
        self.ring, self.seconds = self, seconds

    def __del__(self) -> None:
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            pass


@pytest.mark.parametrize("ends", [True, False])
def test_a_strike_of_the_clock_that_was_lost_is_not_the_last(ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []

    def slow(*_: object, **__: object) -> bool:
        Deaf(1.2)
        gc.collect()
        heard.append(1)
        end = time.monotonic() + 20
        while not ends:
            if time.monotonic() > end:
                heard.append(2)
                break
        return False

    monkeypatch.setattr("math_verify.verify", slow)
    # pytest's own hook writes a report, which takes so long on a busy machine that the next strike falls into it.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    before = signal.getsignal(signal.SIGALRM)
    assert math_equal(r"\frac{1}{2}", r"\boxed{\frac{1}{3}}", timeout=1) is U
    assert heard == [1], "the first strike was lost"
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    monkeypatch.undo()
    assert math_equal(r"\frac{1}{2}", r"\boxed{\frac{1}{3}}", timeout=60) is W


def test_outside_the_main_thread_the_verdicts_are_the_same() -> None:
    """math-verify's clock is a signal: in a thread it raises, and a grader that swallows that gives 0 to all."""
    cases = [
        (r"\frac{1}{2}", r"\boxed{0.5}", R),
        (r"\frac{1}{2}", r"\boxed{0.6}", W),
        (r"\frac{", "1", U),
        ("5", "5", R),
    ]
    found: list[Verdict] = []
    thread = threading.Thread(target=lambda: found.extend(math_equal(gold, reply) for gold, reply, _ in cases))
    thread.start()
    thread.join()
    assert found == [verdict for _, _, verdict in cases]


@pytest.mark.parametrize("seconds", [0.2, 3600.0])
def test_an_alarm_that_somebody_had_set_is_set_again(seconds: float) -> None:
    rang: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        assert math_equal(r"\frac{1}{2}", r"\boxed{0.5}", timeout=60) is R
        left, again = signal.getitimer(signal.ITIMER_REAL)
        assert rang or 0 < left <= seconds
        assert again == 0 or rang
        end = time.monotonic() + 60
        while seconds < 1 and not rang:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert len(rang) == (seconds < 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
