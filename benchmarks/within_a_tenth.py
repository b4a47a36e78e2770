"""The grader of the data set `price`: a price counts as right if it is within 10 % of the true one."""

from __future__ import annotations

from rorqual.tasks.answer import answer_number


def within_a_tenth(prompt: str, answer: str, reply: str) -> bool:
    """Return whether the reply's number is within 10 % of the answer's."""
    true, given = answer_number(answer), answer_number(reply)
    return true is not None and given is not None and abs(given - true) * 10 <= abs(true)
