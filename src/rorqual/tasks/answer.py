r"""Functions for your own graders: find the answer in a reply, and compare numbers or LaTeX."""

from __future__ import annotations

from fractions import Fraction

from rorqual.tasks.answer_marks import last_line, last_mark, unwrap_answer, without_thinking
from rorqual.tasks.expressions import verify_latex
from rorqual.tasks.numbers import last_number, read_number, read_unitless_number
from rorqual.tasks.task import Verdict

__all__ = ["answer_number", "final_answer", "final_number", "last_mark", "math_equal", "read_unitless_number"]


def final_answer(text: str) -> str:
    """Return the last marked answer of `text`, or the last non-empty line if no answer is marked. `$` around the answer are
    removed."""
    answer = last_mark(text)
    return unwrap_answer(last_line(text) if answer is None else answer)


def final_number(text: str) -> Fraction | None:
    """Return the marked number of `text`. If no answer is marked, return the last number of `text`, or None. If the marked
    answer has several numbers, return None.

    `1,234`, `$5`, `-2.50`, `3/4` and `70k` are numbers, and 50% is 50.
    """
    answer = last_mark(text)
    number = last_number(without_thinking(text)) if answer is None else read_number(answer)
    return None if number is None else number.value


def answer_number(text: str) -> Fraction | None:
    """Return the final answer of `text` if it is one number, with or without a unit, else None. `18 or 19` and `It is 18` give None."""
    number = read_number(final_answer(text))
    return None if number is None else number.value


def math_equal(gold: str, reply: str, *, timeout: int = 5) -> Verdict:
    r"""Grade whether the final answer of `reply` (the last mark, else the last line) equals the LaTeX `gold`.

    The verdict is UNGRADED if `gold` does not parse, or if the comparison takes more than `timeout` seconds.
    """
    return verify_latex(gold, final_answer(reply), timeout=timeout)
