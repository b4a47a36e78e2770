"""Find the answer in a reply (a number, LaTeX or a label), and use math-verify to compare LaTeX with the gold answer."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from types import ModuleType
from typing import Any

from sympy import Basic, Expr, Float, Integer, MatrixBase, Rational, Set
from sympy.logic.boolalg import Boolean
from sympy.polys.polyerrors import BasePolynomialError

from rorqual.core.extras import extra
from rorqual.tasks.amounts import Amount, final_amount
from rorqual.tasks.answer_marks import boxed, marked
from rorqual.tasks.base import Verdict
from rorqual.tasks.bases import base_of, value_of
from rorqual.tasks.expressions import bare_words, gold_words, read_final_expressions, same_unit, tidy
from rorqual.tasks.intervals import set_condition, union
from rorqual.tasks.labels import label
from rorqual.tasks.numbers import Number, single, whole_number
from rorqual.tasks.parts import Parts, parts, side, split
from rorqual.tasks.reply import verdict

__all__ = ["boxed", "final_answer", "final_number", "label", "marked", "math_equal", "parses", "whole_number"]

FAILURES = (
    ArithmeticError, AssertionError, AttributeError, BasePolynomialError, LookupError, NotImplementedError, RecursionError,
    TypeError, ValueError,
)  # fmt: skip
"""Exceptions that sympy raises on expressions that it cannot compare. A reply with such an expression is ungraded, not wrong."""
_INEQUALITY = re.compile(r"[<>]|\\[lg]eq?(?![a-z])")
POINTS = (Rational(7, 3), Rational(11, 5), Rational(23, 9))
"""Values that the variables take when two expressions are compared."""
LONGER, LONGEST = 10, 400
"""The longest answer that is parsed has 400 characters plus ten times the length of the gold answer. A longer answer is
wrong."""
STRIKES_AGAIN = 0.5
"""Seconds between repeated alarms after a timeout."""

# `_clock` enforces the timeout. Therefore silence the warning that math-verify's own timeout is off.
for _name in ("math_verify.parser", "math_verify.grader"):
    logging.getLogger(_name).addFilter(lambda record: not record.getMessage().startswith("Timeout is disabled"))


@cache
def math_verify() -> ModuleType:
    """Import and return math-verify. Raises ConfigError if math-verify is not installed."""
    with extra("math", "math_verify", "latex2sympy2_extended"):
        import math_verify
        import math_verify.errors
    return math_verify


def final_answer(text: str) -> str:
    """Return the last marked answer, else the last non-empty line, without surrounding `$`."""
    answer = marked(text)
    if answer is None:
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        answer = lines[-1] if lines else ""
    return answer.strip("$ ") if answer.count("$") in (0, 2) else answer.strip()


def final_number(text: str) -> Fraction | None:
    """Return the final number of `text`, or None. `1,234`, `$5`, `-2.50`, `3/4`, `70k` and `twelve` are numbers, and 50% is 50."""
    amount = final_amount(text)
    return None if amount is None else amount.value


def math_equal(gold: str, reply: str, *, timeout: int = 5) -> Verdict:
    """Use math-verify to grade whether the final expression of `reply` equals the LaTeX `gold`.

    The verdict is UNGRADED if `gold` does not parse, if parsing or comparing takes over `timeout` seconds, or if sympy fails.
    The timeout uses a signal handler, which only the main thread can set. Threads other than the main thread start a
    process for each comparison.
    """
    stated = read_final_expressions(reply, gold)
    verdicts = [_math_equal(gold, expression, timeout) for expression in stated.final or (None,)]
    if Verdict.UNGRADED in verdicts:
        return Verdict.UNGRADED
    return verdict(
        (expression is Verdict.RIGHT for expression in verdicts),
        (_math_equal(gold, expression, timeout) is Verdict.RIGHT for expression in stated.beside),
    )


def _math_equal(gold: str, answer: str | None, timeout: int) -> Verdict:
    """Grade one final expression against `gold`. `answer` is None if the reply has no final expression."""
    if answer is not None and len(answer) > LONGER * len(gold) + LONGEST:
        answer = None
    gold_number, answer_number = _number(tidy(gold)), None if answer is None else _number(tidy(answer))
    if (
        answer is not None
        and gold_number is not None
        and answer_number is not None
        and gold_number.value is not None
        and same_unit(gold, answer)
    ):
        return Verdict.RIGHT if _same_number(gold_number, answer_number) else Verdict.WRONG
    if threading.current_thread() is threading.main_thread():
        return _compare(gold, answer, timeout)
    return _compare_elsewhere(gold, answer, timeout)


def parses(gold: str, *, timeout: int = 5) -> bool:
    """Return whether `gold` is usable as a gold answer, that is, whether a reply that repeats it is graded correct."""
    return math_equal(gold, f"\\boxed{{{gold}}}", timeout=timeout) is Verdict.RIGHT


def _compare(gold: str, answer: str | None, timeout: int) -> Verdict:
    """Split both expressions into parts, and compare each part with math-verify.

    The brackets must agree: a set never equals a tuple, and intervals with different brackets differ.
    """
    if (words := gold_words(gold)) is not None:
        return Verdict.RIGHT if answer is not None and bare_words(answer) == words else Verdict.WRONG
    try:
        if not gold.strip() or not _usable(tidy(gold), timeout):
            return Verdict.UNGRADED
        if answer is None or not same_unit(gold, answer):
            return Verdict.WRONG
        # `tidy` removes degree signs. Without degree signs, the sides of an equation such as `\pi = 180°` differ.
        if re.search(r"\\circ|°", answer) and "=" not in gold:
            answer = answer.rpartition("=")[2]
        if tidy(gold) == tidy(answer) or _equal(tidy(gold), tidy(answer), timeout):
            return Verdict.RIGHT
        return Verdict.UNGRADED if _open(tidy(gold), tidy(answer), timeout) else Verdict.WRONG
    except (math_verify().errors.TimeoutException, *FAILURES):
        return Verdict.UNGRADED


def _usable(gold: str, timeout: int) -> bool:
    """Return whether every part of `gold` parses."""
    gold = split(gold, "\\in")[-1]
    split_gold = parts(gold)
    if split_gold is not None:
        return all(_usable(item, timeout) for item in split_gold.items)
    number = _number(gold)
    return (number is not None and number.value is not None) or bool(_parsed(gold, timeout))


def _equal(gold: str, answer: str, timeout: int) -> bool:
    gold = split(gold, "\\in")[-1]
    sides = side(answer, equation="=" in gold)
    if len(sides) > 2 and _contradicts([text for text in sides if text], timeout):
        return False
    answer = sides[-1]
    if len(sides) == 2 and not _names(sides[0]) and _contradicts(sides, timeout):
        return False
    gold_parts, answer_parts = parts(gold), parts(answer)
    if _INEQUALITY.search(gold) is None and _INEQUALITY.search(answer) is not None:
        described = union(
            answer_parts.items if answer_parts is not None and answer_parts.kind == "," else [set_condition(answer)]
        )
        if described is not None:
            return _equal(gold, described, timeout)
    if (gold_parts is None and answer_parts is None) or (_INEQUALITY.search(gold) is None) != (
        _INEQUALITY.search(answer) is None
    ):
        return _equal_expressions(gold, answer, timeout)
    if gold_parts is None and answer_parts is not None and answer_parts.kind == "," and "pm" not in answer:
        # `answer` lists several values; it is correct if each value equals `gold`.
        return all(_equal(gold, item, timeout) for item in answer_parts.items)
    if gold_parts is None or answer_parts is None:
        return False
    return _equal_parts(gold_parts, answer_parts, timeout)


def _open(gold: str, answer: str, timeout: int) -> bool:
    r"""Return whether `answer` cannot be graded without the question.

    The question is needed if `answer` omits the base of a number, labels its values (`x = 5, y = 7`) or lists the entries of
    a column vector. The function also returns True for an unsupported notation such as `\setminus`.
    """
    if (base := base_of(gold)) is not None:
        return answer.replace(" ", "").upper() == base[0]
    gold_parts, answer_parts = _rows(gold) or parts(gold), parts(answer)
    if gold_parts is not None and re.search(r"\\(?:setminus|backslash|forall)(?![a-z])", answer):
        return True
    if answer_parts is None or answer_parts.kind not in (",", "()"):
        return False
    values = _named_values(answer_parts)
    if gold_parts is None:
        return any(_equal(gold, value, timeout) for value in values)
    values = values or (answer_parts.items if gold_parts.kind == "rows" else ())
    same_length = gold_parts.kind in ("()", "rows") and len(values) == len(gold_parts.items)
    return same_length and all(_equal(*pair, timeout) for pair in zip(gold_parts.items, values))


def _named_values(answer: Parts) -> tuple[str, ...]:
    """Return the values of `a = 1, b = 2`. The tuple is empty if a value has no name or two values share a name."""
    sides = [split(item, "=") for item in answer.items]
    named = all(len(pair) == 2 for pair in sides) and len({pair[0] for pair in sides}) == len(sides)
    return tuple(pair[1] for pair in sides) if named else ()


def _rows(text: str) -> Parts | None:
    """Return the entries of a matrix with one column, or None if `text` is not such a matrix."""
    matrix = re.fullmatch(r"\\begin\{[pb]matrix\}([^&]*)\\end\{[pb]matrix\}", text.strip(), re.DOTALL)
    return (
        None if matrix is None else Parts("rows", tuple(row.strip() for row in matrix[1].split("\\\\") if row.strip()))
    )


def _equal_parts(gold: Parts, answer: Parts, timeout: int) -> bool:
    """Compare tuples and intervals in order and with their brackets. Compare lists and sets in any order.

    A list without brackets may equal a set.
    """
    loose = {gold.kind, answer.kind} == {",", "{}"}
    if (gold.kind != answer.kind and not loose) or len(gold.items) != len(answer.items):
        return False
    if gold.ordered:
        return all(_equal(gold_item, answer_item, timeout) for gold_item, answer_item in zip(gold.items, answer.items))
    unmatched = list(answer.items)
    for gold_item in gold.items:
        place = next((i for i, answer_item in enumerate(unmatched) if _equal(gold_item, answer_item, timeout)), None)
        if place is None:
            return False
        del unmatched[place]
    return True


def _contradicts(sides: list[str], timeout: int) -> bool:
    """Return whether two sides of a chain of equations are different constants (`3 = 4`)."""
    constants = [value for text in sides if (value := _value(text, timeout)) is not None]
    return any(not _exactly(constants[0], value) for value in constants[1:])


def _value(text: str, timeout: int) -> Expr | None:
    if re.search(r"\\[lc]?dots|\.\.\.", text):
        return None
    if (integer := value_of(text)) is not None:
        return Integer(integer)
    constants = [item for item in _parsed(text, timeout) or [] if isinstance(item, Expr)]
    return constants[0] if constants and not constants[0].free_symbols else None


def _names(text: str) -> bool:
    """Return whether the left side of an equation only names the right side, with a letter, a function or words."""
    return re.search(r"[A-Za-z]", re.sub(r"\\(?:[dt]?frac|sqrt|cdot|times|pi|div)", "", text)) is not None


def _number(text: str) -> Number | None:
    r"""Return `text` as an exact number, or None. Return None for `\frac` without `%`, because math-verify parses
    `\frac`."""
    return None if "frac" in text and "%" not in text else single(text)


def _same_number(gold: Number, answer: Number) -> bool:
    if gold.value is None or answer.value is None:
        return False
    if gold.percent == answer.percent:
        return gold.value == answer.value
    return (
        Amount(answer.value, answer.percent).equals(gold.value)
        if answer.percent
        else answer.value in (gold.value, gold.value / 100)
    )


def _equal_expressions(gold: str, answer: str, timeout: int) -> bool:
    bases = (base_of(gold), base_of(answer))
    if bases != (None, None):
        return bases[0] == bases[1]
    gold_number, number = _number(gold), _number(answer)
    if gold_number is not None and number is not None:
        return _same_number(gold_number, number)
    if number is not None and number.value is not None and number.value.denominator > 1:
        # `single` reads forms that LaTeX lacks, such as `3 1/2`.
        answer = f"\\frac{{{number.value.numerator}}}{{{number.value.denominator}}}" + "\\%" * number.percent
    if ("=" in gold) != ("=" in answer):
        gold, answer = side(gold, False)[-1], side(answer, False)[-1]
    golds, answers = _parsed(gold, timeout), _parsed(answer, timeout)
    if golds is None or answers is None:
        raise math_verify().errors.TimeoutException
    return any(_verified(gold_form, form, timeout) for gold_form in golds for form in answers)


def _verified(gold: Any, answer: Any, timeout: int) -> bool:
    with _clock(timeout):
        if isinstance(gold, Set) != isinstance(answer, Set) and isinstance(
            gold if isinstance(answer, Set) else answer, Boolean
        ):
            return bool(_as_set(gold) == _as_set(answer))
        equal = math_verify().verify(gold, answer, timeout_seconds=None, raise_on_error=True)
        return bool(equal) and _exactly(gold, answer)


def _as_set(expression: Any) -> Any:
    """Return the set of numbers that satisfy an inequality."""
    return expression if isinstance(expression, Set) else expression.as_set()


def _exactly(first: Any, second: Any) -> bool:
    """Return whether two expressions agree to 25 digits. math-verify itself rounds to 6 digits.

    Expressions with variables are compared at the values in `POINTS`.
    """
    if isinstance(first, MatrixBase) and isinstance(second, MatrixBase):
        return first.shape == second.shape and all(map(_exactly, first, second))
    if not isinstance(first, Expr) or not isinstance(second, Expr):
        return True
    difference = _rational(first) - _rational(second)
    letters = sorted(difference.free_symbols, key=str)
    for point in POINTS if letters else POINTS[:1]:
        value = difference.subs({letter: point + Rational(i, 7) for i, letter in enumerate(letters)}).evalf(40)
        if not value.is_finite or not value.is_number:
            continue
        if abs(value) > Rational(1, 10**25):
            return False
    return True


def _rational(expression: Expr) -> Expr:
    """Return `expression` with each decimal as an exact fraction."""
    return expression.xreplace({number: Rational(str(number)) for number in expression.atoms(Float)})


def _parsed(text: str, timeout: int) -> list[Any] | None:
    """Parse `text`, and return the expressions without math-verify's fallback strings. Return None after a timeout."""
    try:
        with _clock(timeout):
            results = math_verify().parse(f"\\boxed{{{text}}}", parsing_timeout=None)
            return [item for item in results if isinstance(item, Basic | MatrixBase)]
    except math_verify().errors.TimeoutException:
        return None


@contextmanager
def _clock(seconds: float) -> Iterator[None]:
    """Raise TimeoutException if the block takes longer than `seconds`. `_clock` works only in the main thread.

    math-verify's own timeout fires once. If math-verify's timeout fires inside a finalizer during garbage collection,
    Python prints the error and continues without a timeout. `_clock` therefore fires again every `STRIKES_AGAIN`
    seconds. If the block ends late, `_clock` also raises the exception. A signal timer that the caller has set still
    fires on time, or at the end of the block.
    """
    expired = math_verify().errors.TimeoutException
    struck = over = False
    start, previous_timer = time.monotonic(), (0.0, 0.0)

    def strike(*_: object) -> None:
        nonlocal struck
        struck = True
        if not over:
            raise expired

    previous_handler = signal.signal(signal.SIGALRM, strike)
    try:
        try:
            previous_timer = signal.setitimer(signal.ITIMER_REAL, seconds, STRIKES_AGAIN)
            yield
        finally:
            over = True
    finally:  # set `over` again, because the alarm may fire inside the inner `finally`
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous_handler)
        if previous_timer[0]:
            signal.setitimer(
                signal.ITIMER_REAL, max(previous_timer[0] - (time.monotonic() - start), 1e-3), previous_timer[1]
            )
    if struck:
        raise expired


def _compare_elsewhere(gold: str, answer: str | None, timeout: int) -> Verdict:
    request = json.dumps([gold, answer, timeout])
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from rorqual.tasks.answer import _main; _main()"],
            input=request, capture_output=True, encoding="utf-8", timeout=30 + 10 * timeout, check=True,
        )  # fmt: skip
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        return Verdict.UNGRADED
    return Verdict(done.stdout.strip())


def _main() -> None:
    gold, answer, timeout = json.loads(sys.stdin.read())
    sys.stdout.write(_compare(gold, answer, timeout).value)
