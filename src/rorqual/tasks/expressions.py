r"""Compare LaTeX with a gold answer. math-verify runs in a separate process, so that a comparison that never ends can be
killed. math-verify rounds to 6 digits, and treats `\{1, 2\}` and `(1, 2)` as equal. Therefore this module itself compares
numbers, words, numbers in a base, and brackets before it calls math-verify.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import threading
from functools import cache
from queue import Empty, SimpleQueue
from types import ModuleType
from typing import Any

from rorqual.core.extras import require_extra
from rorqual.tasks.numbers import read_number
from rorqual.tasks.task import Verdict

LONGER, LONGEST = 10, 400
"""An answer that is longer than `LONGEST` characters plus `LONGER` times the length of the gold answer is wrong."""
START_SECONDS = 120.0
"""Maximum number of seconds in which the comparison process may import math-verify."""
DIGITS = 30
"""Number of digits to which two expressions must agree if math-verify cannot prove that they are equal."""
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
)
"""Exceptions that sympy raises on expressions that it cannot compare. The verdict on an answer that raises one of these
exceptions is UNGRADED, not WRONG."""
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textrm|mbox|textit|operatorname)\s?\{([^{}]{0,200})\}")
_SPACING = re.compile(r"\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|(?<!\\)\\[!;: ]|~|\\,")
_BASED = re.compile(r"([0-9A-Fa-f]+)_\{?([0-9]{1,2})\}?")
_REPEATING = re.compile(r"([0-9]*)\.([0-9]{0,9})\\overline\s?\{([0-9]{1,9})\}")
_OPEN = re.compile(r"\\{|[\[(]")


@cache
def import_math_verify() -> ModuleType:
    """Import and return math-verify. Raises ConfigError if math-verify is not installed."""
    with require_extra("math", "math_verify", "latex2sympy2_extended"):
        import math_verify
    for name in (
        "math_verify.parser",
        "math_verify.grader",
    ):  # the process enforces the time limit, so silence "Timeout is disabled"
        logging.getLogger(name).setLevel(logging.ERROR)
    return math_verify


def verify_latex(gold: str, answer: str, *, timeout: float) -> Verdict:
    """Grade whether the LaTeX `answer` equals `gold`. The verdict is UNGRADED if `gold` does not parse, or if there is no
    verdict after `timeout` seconds."""
    if len(answer) > LONGER * len(gold) + LONGEST:
        answer = ""
    if (words := gold_words(gold)) is not None:
        return _verdict(normalize_words(answer) == words)
    number, gold_number = read_number(answer), read_number(gold)
    if number is not None and gold_number is not None:
        return _verdict(number.equals(gold_number))
    return COMPARER.compare_in_process(gold, answer, timeout)


def _verdict(right: bool) -> Verdict:
    return Verdict.RIGHT if right else Verdict.WRONG


def gold_words(gold: str) -> str | None:
    r"""Return the bare words of a gold answer that consists of words (`\text{Evelyn}`, `\text{(C)}`), else None."""
    bare = gold.strip(" $")
    inner = _TEXT.sub(r" \1 ", bare)
    if "\\" in inner or not re.search("[A-Za-z]", inner) or read_number(gold) is not None:
        return None
    return (
        normalize_words(inner)
        if inner != bare or re.fullmatch(r"(?:[A-Za-z]{2,}[ .-]?)+|\([A-Z]\)|[A-Z]", bare)
        else None
    )


def normalize_words(text: str) -> str:
    """Return the letters, digits and `:/+-` of `text` in lower case: `3:30pm` for `\\text{3:30 p.m.}`."""
    return re.sub(r"[^0-9a-z:/+-]", "", _TEXT.sub(r" \1 ", text).lower())


def compare_expressions(gold: str, answer: str) -> Verdict:
    """Compare two LaTeX expressions with math-verify. The comparison by math-verify may never end."""
    golds = _parse_expression(gold)
    if not golds:
        return Verdict.UNGRADED
    based = [_BASED.fullmatch(text.replace(" ", "")) for text in (gold, answer)]
    if any(based):
        return _verdict(all(based) and len({(match[1].upper(), match[2]) for match in based if match}) == 1)
    if _opening_brackets(gold) | _opening_brackets(answer) >= {"\\{", "("}:
        return Verdict.WRONG
    sides = re.split(r"(?<![<>\\!])=", answer)
    if "=" in gold or "," in answer or any(re.search(r"(?<!\\)\b[A-Za-z]", side) for side in sides[:-1]):
        sides = [answer]
    return _verdict(all(_verify_equal(golds, _parse_expression(side)) for side in sides))


def _verify_equal(golds: list[Any], answers: list[Any]) -> bool:
    options: dict[str, Any] = {"timeout_seconds": None, "raise_on_error": True, "allow_set_relation_comp": True}
    return bool(answers) and import_math_verify().verify(golds, answers, numeric_precision=DIGITS, **options)


def _parse_expression(text: str) -> list[Any]:
    """Parse `text` with math-verify. Each decimal in `text` becomes an exact fraction. Parsed values that are strings
    are not returned."""
    from sympy import Float, Rational

    text = _REPEATING.sub(_repeating_to_fraction, _SPACING.sub(" ", text))
    forms = import_math_verify().parse(f"\\boxed{{{text}}}", parsing_timeout=None)
    return [
        form.xreplace({decimal: Rational(str(decimal)) for decimal in form.atoms(Float)})
        for form in forms
        if not isinstance(form, str)
    ]


def _repeating_to_fraction(match: re.Match[str]) -> str:
    """Return a repeating decimal as a fraction: `\\frac{1}{3}` for `0.\\overline{3}`."""
    before, after, repeated = match.groups()
    nines, shift = 10 ** len(repeated) - 1, 10 ** len(after)
    return rf"\frac{{{int(before + after or 0) * nines + int(repeated)}}}{{{nines * shift}}}"


def _opening_brackets(text: str) -> set[str]:
    """Return a set with the bracket that opens `text`, or an empty set if `text` is not a list in brackets."""
    match = _OPEN.match(_SPACING.sub(" ", text).strip())
    return {match[0]} if match and "," in text else set()


class ComparisonProcess:
    """A client of the process that compares expressions. The comparison process starts with the first comparison, and is
    restarted after a comparison that took too long."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        self.lines: SimpleQueue[str] = SimpleQueue()

    def compare_in_process(self, gold: str, answer: str, timeout: float) -> Verdict:
        """Return the verdict on `answer`, or UNGRADED if there is no verdict after `timeout` seconds. A lock allows one
        comparison at a time."""
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self._start()
            assert self.process is not None and self.process.stdin is not None
            try:
                print(json.dumps([gold, answer]), file=self.process.stdin, flush=True)
                return Verdict(self.lines.get(timeout=timeout))
            except (Empty, OSError, ValueError):
                self.process.kill()
                self.process.wait()
                return Verdict.UNGRADED

    def _start(self) -> None:
        command = [sys.executable, "-c", "from rorqual.tasks.expressions import serve_comparisons; serve_comparisons()"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
        )
        self.lines = SimpleQueue()
        threading.Thread(target=_read_lines, args=(self.process, self.lines), daemon=True).start()
        self.lines.get(timeout=START_SECONDS)


def _read_lines(process: subprocess.Popen[str], lines: SimpleQueue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line.strip())
    lines.put("")  # the process ended: no verdict


COMPARER = ComparisonProcess()


def serve_comparisons() -> None:
    """Read (gold, answer) pairs as JSON lines from standard input, and print a verdict for each pair. If an exception that is
    not in `FAILURES` ends this process, the parent process returns UNGRADED."""
    import_math_verify()
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            verdict = compare_expressions(*json.loads(line))
        except FAILURES:
            verdict = Verdict.UNGRADED
        print(verdict.value, flush=True)
