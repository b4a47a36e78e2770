"""Find the answer in a reply, and compare it: numbers exactly, mathematics by math-verify, labels by name."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from math_verify import parse, verify
from math_verify.errors import TimeoutException
from sympy import Basic, MatrixBase
from sympy.polys.polyerrors import BasePolynomialError

from rorqual.tasks.base import Verdict

NUMBER = re.compile(r"((?:(?<![\w)])-)?)\$?((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:/(\d+)(?![\d.]))?")
MARKED = re.compile(r"(?:####|\banswer\s*(?:is\b|:|=))[:\s]*([^\n]+)", re.IGNORECASE)
FAILURES = (
    ArithmeticError, AssertionError, AttributeError, BasePolynomialError, LookupError, NotImplementedError, RecursionError,
    TypeError, ValueError,
)  # fmt: skip
"""What sympy is known to raise on expressions that it cannot compare. Such a reply is ungraded, not wrong."""
STRIKES_AGAIN = 0.5
"""Seconds from one strike of the clock to the next."""

for _name in ("math_verify.parser", "math_verify.grader"):  # the clock that they miss is our own
    logging.getLogger(_name).addFilter(lambda record: not record.getMessage().startswith("Timeout is disabled"))


def boxed(text: str) -> str | None:
    r"""The content of the last whole `\boxed{...}` (braces may nest), None where there is none."""
    end = len(text)
    while (start := text.rfind("\\boxed{", 0, end)) >= 0:
        depth, begin = 0, start + len("\\boxed")
        for i in range(begin, len(text)):
            depth += (text[i] == "{") - (text[i] == "}") if text[i - 1] != "\\" else 0
            if depth == 0:
                return text[begin + 1 : i].strip()
        end = start
    return None


def marked(text: str) -> str | None:
    r"""What the reply itself calls its answer: the last `\boxed{}`, else after the last `####`, `answer is` or `answer:`."""
    found = boxed(text)
    if found is not None:
        return found
    lines = MARKED.findall(text)
    return lines[-1].strip().rstrip(".").strip() if lines else None


def final_answer(text: str) -> str:
    """The marked answer, else the last line that is not empty, without `$` around it."""
    found = marked(text)
    if found is None:
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        found = lines[-1] if lines else ""
    return found.strip("$ ") if found.count("$") in (0, 2) else found.strip()


def final_number(text: str) -> Fraction | None:
    """The last number of the marked answer, else of the whole reply: `1,234`, `$5`, `-2.50` and `3/4` are numbers."""
    found = marked(text)
    for part in (found, text) if found is not None else (text,):
        numbers = NUMBER.findall(part.replace("−", "-").replace("\\$", "$").replace("{,}", ","))
        if numbers:
            return _fraction(*numbers[-1])
    return None


def _fraction(sign: str, digits: str, below: str) -> Fraction | None:
    if len(digits) + len(below) > 200 or (below and int(below) == 0):
        return None
    return Fraction(sign + digits.replace(",", "")) / (int(below) if below else 1)


def whole_number(text: str) -> Fraction | None:
    """`text` as one number and nothing else, None where it is anything more."""
    match = NUMBER.fullmatch(text.strip().strip("$").strip())
    return _fraction(*match.groups(default="")) if match else None


def label(text: str, labels: Collection[str]) -> str | None:
    """The label that the marked answer, the last line, or the whole reply names; None where it names none, or several."""
    for part in (marked(text), final_answer(text), text):
        if part is None:
            continue
        named = {name for name in labels if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", part, re.IGNORECASE)}
        if len(named) == 1:
            return named.pop()
        if named:
            return None
    return None


def math_equal(gold: str, reply: str, *, timeout: int = 5) -> Verdict:
    """Whether `reply` ends in mathematics equal to the LaTeX `gold`, by math-verify.

    UNGRADED where the gold answer does not parse, where parsing or comparing took more than `timeout` seconds, or where
    sympy failed: none of these says that the reply is wrong. math-verify's clock is a signal, which only the main thread may
    set: in another thread the comparison runs in a process of its own, and costs its start.
    """
    one, other = whole_number(gold), whole_number(final_answer(reply))
    if one is not None and other is not None:
        return Verdict.RIGHT if one == other else Verdict.WRONG
    if threading.current_thread() is threading.main_thread():
        return _compare(gold, reply, timeout)
    return _compare_elsewhere(gold, reply, timeout)


def parses(gold: str, *, timeout: int = 5) -> bool:
    """Whether `gold` can be used to grade: a reply that repeats it is right."""
    return math_equal(gold, f"\\boxed{{{gold}}}", timeout=timeout) is Verdict.RIGHT


def _compare(gold: str, reply: str, timeout: int) -> Verdict:
    golds = _parsed(f"\\boxed{{{gold}}}", timeout) if gold.strip() else []
    if not golds:
        return Verdict.UNGRADED
    answer = final_answer(reply)
    prose = marked(reply) is None and "\\" not in answer and len(re.findall(r"[A-Za-z]{2,}", answer)) > 2
    answers = _parsed(answer if prose else f"\\boxed{{{answer}}}", timeout)
    if answers is None:
        return Verdict.UNGRADED
    failed = False
    for one in golds:
        for other in answers:
            try:
                with _clock(timeout):
                    if verify(one, other, timeout_seconds=None, raise_on_error=True):
                        return Verdict.RIGHT
            except (TimeoutException, *FAILURES):
                failed = True
    return Verdict.UNGRADED if failed else Verdict.WRONG


def _parsed(text: str, timeout: int) -> list[Any] | None:
    """Expressions, not the strings that math-verify falls back to; None where the clock ran out."""
    try:
        with _clock(timeout):
            return [item for item in parse(text, parsing_timeout=None) if isinstance(item, Basic | MatrixBase)]
    except TimeoutException:
        return None


@contextmanager
def _clock(seconds: float) -> Iterator[None]:
    """Raises TimeoutException where what is inside takes longer than `seconds`, in the main thread only.

    math-verify has such a clock, which strikes once. Where it strikes in what a garbage collection calls, Python prints the error and
    goes on, without a clock and without an end: so this one goes on striking, and an end that comes too late is still too late. An alarm
    that somebody had set goes off when it was to, or at the end of this.
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
    finally:  # once more, should it have struck on the way here
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if theirs[0]:
            signal.setitimer(signal.ITIMER_REAL, max(theirs[0] - (time.monotonic() - began), 1e-3), theirs[1])
    if struck:
        raise TimeoutException


def _compare_elsewhere(gold: str, reply: str, timeout: int) -> Verdict:
    request = json.dumps([gold, reply, timeout])
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from rorqual.tasks.answer import _main; _main()"],
            input=request, capture_output=True, encoding="utf-8", timeout=30 + 10 * timeout, check=True,
        )  # fmt: skip
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        return Verdict.UNGRADED
    return Verdict(done.stdout.strip())


def _main() -> None:
    gold, reply, timeout = json.loads(sys.stdin.read())
    sys.stdout.write(_compare(gold, reply, timeout).value)
