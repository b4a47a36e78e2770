"""Find the answer in a reply and compare it: numbers exactly, mathematics with math-verify, labels by name."""

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
from typing import Any

from math_verify import parse, verify
from math_verify.errors import TimeoutException
from sympy import Basic, Expr, Float, Integer, MatrixBase, Rational, Set
from sympy.logic.boolalg import Boolean
from sympy.polys.polyerrors import BasePolynomialError

from rorqual.tasks.amounts import Amount, final_amount
from rorqual.tasks.answer_marks import boxed, marked
from rorqual.tasks.base import Verdict
from rorqual.tasks.bases import base_of, value_of
from rorqual.tasks.expressions import bare_words, gold_words, said_expressions, same_unit, tidy
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
"""Exceptions that sympy raises on expressions that it cannot compare. Such a reply is ungraded, not wrong."""
_INEQUALITY = re.compile(r"[<>]|\\[lg]eq?(?![a-z])")
POINTS = (Rational(7, 3), Rational(11, 5), Rational(23, 9))
"""Values of the variables at which two expressions are compared."""
LONGER, LONGEST = 10, 400
"""An answer longer than ten times the gold answer plus 400 characters is wrong and is not parsed."""
STRIKES_AGAIN = 0.5
"""Seconds between repeated alarms after a timeout."""

for _name in ("math_verify.parser", "math_verify.grader"):  # they warn about a missing timeout; `_clock` sets one
    logging.getLogger(_name).addFilter(lambda record: not record.getMessage().startswith("Timeout is disabled"))


def final_answer(text: str) -> str:
    """Return the marked answer, else the last line that is not empty, without `$` around it."""
    found = marked(text)
    if found is None:
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        found = lines[-1] if lines else ""
    return found.strip("$ ") if found.count("$") in (0, 2) else found.strip()


def final_number(text: str) -> Fraction | None:
    """Return the final number of `text`. `1,234`, `$5`, `-2.50`, `3/4`, `70k` and `twelve` are numbers, and 50% is 50."""
    found = final_amount(text)
    return None if found is None else found.value


def math_equal(gold: str, reply: str, *, timeout: int = 5) -> Verdict:
    """Grade whether the final expression of `reply` equals the LaTeX `gold`, with math-verify.

    The verdict is UNGRADED if `gold` does not parse, if parsing or comparing takes over `timeout` seconds, or if sympy fails.
    The timeout is a signal, and only the main thread can set signals. Other threads therefore start a process for each comparison.
    """
    said = said_expressions(reply, gold)
    found = [_math_equal(gold, one, timeout) for one in said.final or (None,)]
    if Verdict.UNGRADED in found:
        return Verdict.UNGRADED
    return verdict(
        (one is Verdict.RIGHT for one in found),
        (_math_equal(gold, one, timeout) is Verdict.RIGHT for one in said.beside),
    )


def _math_equal(gold: str, said: str | None, timeout: int) -> Verdict:
    """Grade one final expression against `gold`. None means that the reply has no final expression."""
    if said is not None and len(said) > LONGER * len(gold) + LONGEST:
        said = None
    one, other = _number(tidy(gold)), None if said is None else _number(tidy(said))
    if said is not None and one is not None and other is not None and one.value is not None and same_unit(gold, said):
        return Verdict.RIGHT if _same_number(one, other) else Verdict.WRONG
    if threading.current_thread() is threading.main_thread():
        return _compare(gold, said, timeout)
    return _compare_elsewhere(gold, said, timeout)


def parses(gold: str, *, timeout: int = 5) -> bool:
    """Return whether `gold` is usable as a gold answer, that is, whether a reply that repeats it is right."""
    return math_equal(gold, f"\\boxed{{{gold}}}", timeout=timeout) is Verdict.RIGHT


def _compare(gold: str, said: str | None, timeout: int) -> Verdict:
    """Compare part by part, then each part with math-verify.

    So a set never equals a tuple, and intervals with different brackets differ.
    """
    if (words := gold_words(gold)) is not None:
        return Verdict.RIGHT if said is not None and bare_words(said) == words else Verdict.WRONG
    try:
        if not gold.strip() or not _usable(tidy(gold), timeout):
            return Verdict.UNGRADED
        if said is None or not same_unit(gold, said):
            return Verdict.WRONG
        if re.search(r"\\circ|°", said) and "=" not in gold:  # degree signs are removed, so the sides may differ
            said = said.rpartition("=")[2]
        if tidy(gold) == tidy(said) or _equal(tidy(gold), tidy(said), timeout):
            return Verdict.RIGHT
        return Verdict.UNGRADED if _open(tidy(gold), tidy(said), timeout) else Verdict.WRONG
    except (TimeoutException, *FAILURES):
        return Verdict.UNGRADED


def _usable(gold: str, timeout: int) -> bool:
    """Return whether every part of `gold` parses."""
    gold = split(gold, "\\in")[-1]
    found = parts(gold)
    if found is not None:
        return all(_usable(item, timeout) for item in found.items)
    number = _number(gold)
    return (number is not None and number.value is not None) or bool(_parsed(gold, timeout))


def _equal(gold: str, said: str, timeout: int) -> bool:
    gold = split(gold, "\\in")[-1]
    sides = side(said, equation="=" in gold)
    if len(sides) > 2 and _contradicts([one for one in sides if one], timeout):
        return False
    said = sides[-1]
    if len(sides) == 2 and not _names(sides[0]) and _contradicts(sides, timeout):
        return False
    one, other = parts(gold), parts(said)
    if _INEQUALITY.search(gold) is None and _INEQUALITY.search(said) is not None:
        described = union(other.items if other is not None and other.kind == "," else [set_condition(said)])
        if described is not None:
            return _equal(gold, described, timeout)
    if (one is None and other is None) or (_INEQUALITY.search(gold) is None) != (_INEQUALITY.search(said) is None):
        return _equal_expressions(gold, said, timeout)
    if one is None and other is not None and other.kind == "," and "pm" not in said:  # one value, stated several times
        return all(_equal(gold, item, timeout) for item in other.items)
    if one is None or other is None:
        return False
    return _equal_parts(one, other, timeout)


def _open(gold: str, said: str, timeout: int) -> bool:
    r"""Return whether only the question can decide: `said` omits a number's base or names, or uses a notation that is not read."""
    if (base := base_of(gold)) is not None:
        return said.replace(" ", "").upper() == base[0]
    one, other = _rows(gold) or parts(gold), parts(said)
    if one is not None and re.search(r"\\(?:setminus|backslash|forall)(?![a-z])", said):
        return True
    if other is None or other.kind not in (",", "()"):
        return False
    values = _named_values(other)
    if one is None:
        return any(_equal(gold, value, timeout) for value in values)
    values = values or (other.items if one.kind == "rows" else ())
    same_length = one.kind in ("()", "rows") and len(values) == len(one.items)
    return same_length and all(_equal(*pair, timeout) for pair in zip(one.items, values))


def _named_values(said: Parts) -> tuple[str, ...]:
    """Return the values of `a = 1, b = 2`. The tuple is empty if a value has no name or two values share one."""
    sides = [split(item, "=") for item in said.items]
    named = all(len(pair) == 2 for pair in sides) and len({pair[0] for pair in sides}) == len(sides)
    return tuple(pair[1] for pair in sides) if named else ()


def _rows(text: str) -> Parts | None:
    """Return the entries of a matrix with one column, or None if `text` is not such a matrix."""
    found = re.fullmatch(r"\\begin\{[pb]matrix\}([^&]*)\\end\{[pb]matrix\}", text.strip(), re.DOTALL)
    return None if found is None else Parts("rows", tuple(row.strip() for row in found[1].split("\\\\") if row.strip()))


def _equal_parts(gold: Parts, said: Parts, timeout: int) -> bool:
    """Compare tuples and intervals in order and with their brackets, lists and sets in any order.

    A list without brackets may equal a set.
    """
    loose = {gold.kind, said.kind} == {",", "{}"}
    if (gold.kind != said.kind and not loose) or len(gold.items) != len(said.items):
        return False
    if gold.ordered:
        return all(_equal(one, other, timeout) for one, other in zip(gold.items, said.items))
    left = list(said.items)
    for one in gold.items:
        place = next((i for i, other in enumerate(left) if _equal(one, other, timeout)), None)
        if place is None:
            return False
        del left[place]
    return True


def _contradicts(sides: list[str], timeout: int) -> bool:
    """Return whether two sides of a chain of equations are different constants (`3 = 4`)."""
    values = [found for one in sides if (found := _value(one, timeout)) is not None]
    return any(not _exactly(values[0], value) for value in values[1:])


def _value(text: str, timeout: int) -> Expr | None:
    if re.search(r"\\[lc]?dots|\.\.\.", text):
        return None
    if (whole := value_of(text)) is not None:
        return Integer(whole)
    found = [item for item in _parsed(text, timeout) or [] if isinstance(item, Expr)]
    return found[0] if found and not found[0].free_symbols else None


def _names(text: str) -> bool:
    """Return whether the left side of an equation names the right side: a letter, a function or words."""
    return re.search(r"[A-Za-z]", re.sub(r"\\(?:[dt]?frac|sqrt|cdot|times|pi|div)", "", text)) is not None


def _number(text: str) -> Number | None:
    r"""Return `text` as an exact number. math-verify handles `\frac`, except in a percentage."""
    return None if "frac" in text and "%" not in text else single(text)


def _same_number(gold: Number, said: Number) -> bool:
    if gold.value is None or said.value is None:
        return False
    if gold.percent == said.percent:
        return gold.value == said.value
    return (
        Amount(said.value, said.percent).equals(gold.value)
        if said.percent
        else said.value in (gold.value, gold.value / 100)
    )


def _equal_expressions(gold: str, said: str, timeout: int) -> bool:
    bases = (base_of(gold), base_of(said))
    if bases != (None, None):
        return bases[0] == bases[1]
    one, other = _number(gold), _number(said)
    if one is not None and other is not None:
        return _same_number(one, other)
    if (
        other is not None and other.value is not None and other.value.denominator > 1
    ):  # `said` may have a form that LaTeX lacks
        said = f"\\frac{{{other.value.numerator}}}{{{other.value.denominator}}}" + "\\%" * other.percent
    if ("=" in gold) != ("=" in said):
        gold, said = side(gold, False)[-1], side(said, False)[-1]
    golds, answers = _parsed(gold, timeout), _parsed(said, timeout)
    if golds is None or answers is None:
        raise TimeoutException
    return any(_verified(one, other, timeout) for one in golds for other in answers)


def _verified(gold: Any, said: Any, timeout: int) -> bool:
    with _clock(timeout):
        if isinstance(gold, Set) != isinstance(said, Set) and isinstance(
            gold if isinstance(said, Set) else said, Boolean
        ):
            return bool(_as_set(gold) == _as_set(said))
        return bool(verify(gold, said, timeout_seconds=None, raise_on_error=True)) and _exactly(gold, said)


def _as_set(one: Any) -> Any:
    """Return the set of numbers that satisfy an inequality."""
    return one if isinstance(one, Set) else one.as_set()


def _exactly(one: Any, other: Any) -> bool:
    """Return whether two expressions agree to 25 digits, since math-verify rounds to 6.

    Expressions with variables are compared at three points.
    """
    if isinstance(one, MatrixBase) and isinstance(other, MatrixBase):
        return one.shape == other.shape and all(map(_exactly, one, other))
    if not isinstance(one, Expr) or not isinstance(other, Expr):
        return True
    difference = _rational(one) - _rational(other)
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
    """Return the parsed expressions, without math-verify's fallback strings, or None after a timeout."""
    try:
        with _clock(timeout):
            found = parse(f"\\boxed{{{text}}}", parsing_timeout=None)
            return [item for item in found if isinstance(item, Basic | MatrixBase)]
    except TimeoutException:
        return None


@contextmanager
def _clock(seconds: float) -> Iterator[None]:
    """Raise TimeoutException if the block takes longer than `seconds`. Works in the main thread only.

    math-verify's own timeout fires once. If it fires inside a finalizer during garbage collection, Python prints the error and continues
    without a timeout. This one fires again every `STRIKES_AGAIN` seconds, and also raises if the block ends late.
    An alarm set by the caller still fires at its time, or at the end of the block.
    """
    struck = over = False
    began, theirs = time.monotonic(), (0.0, 0.0)

    def strike(*_: object) -> None:
        nonlocal struck
        struck = True
        if not over:
            raise TimeoutException

    before = signal.signal(signal.SIGALRM, strike)
    try:
        try:
            theirs = signal.setitimer(signal.ITIMER_REAL, seconds, STRIKES_AGAIN)
            yield
        finally:
            over = True
    finally:  # repeated, because the alarm may fire inside the inner `finally`
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if theirs[0]:
            signal.setitimer(signal.ITIMER_REAL, max(theirs[0] - (time.monotonic() - began), 1e-3), theirs[1])
    if struck:
        raise TimeoutException


def _compare_elsewhere(gold: str, said: str | None, timeout: int) -> Verdict:
    request = json.dumps([gold, said, timeout])
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from rorqual.tasks.answer import _main; _main()"],
            input=request, capture_output=True, encoding="utf-8", timeout=30 + 10 * timeout, check=True,
        )  # fmt: skip
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        return Verdict.UNGRADED
    return Verdict(done.stdout.strip())


def _main() -> None:
    gold, said, timeout = json.loads(sys.stdin.read())
    sys.stdout.write(_compare(gold, said, timeout).value)
