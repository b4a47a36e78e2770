"""A calculator for small models: after a calculation such as `12 + 34 =`, the engine writes the result of the calculation.

The calculator follows Cobbe et al. (2110.14168, appendix C).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Future
from fractions import Fraction

from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.grammar.constraint import Bools, Constraint, VocabularyMasks

LONGEST = 60
"""Maximum number of characters of a calculation."""
WINDOW = 4 * LONGEST
"""Number of newest reply tokens that are searched for a calculation. A token has at least one byte, and a character has at most
four bytes."""
PLACES = 6
"""Maximum number of decimal places of a result. The engine does not write a result with more decimal places."""
NUMBER = r"(?:0|[1-9]\d{0,14})(?:,\d{3})*(?:\.\d{1,9})?"
OPERATORS = "-+*/−×÷"
CALCULATION = re.compile(rf"(?<![\w.,]){NUMBER}(?:\s?[{OPERATORS}]\s?{NUMBER})+(?=\s?=$)")

NO_WORD = "times|over|plus|minus|by|mod|modulo|per|log|ln|sqrt|root|sin|cos|tan|exp"
PRECEDES = re.compile(
    rf"(?:^\s*|\n\s*|[=<>]\s?|[.,:;!?]\s|(?<![^\W\d_])(?!(?:{NO_WORD})\s)[^\W\d_]{{2,}}\s)[$€£]?$", re.IGNORECASE
)
"""Matches text that may precede a calculation. Operators, brackets and variables may not precede a calculation, because the
calculation may then be part of a larger expression."""


def calculate(text: str) -> str:
    """Return the result that the engine writes after a text that ends with a calculation and `=`, or "" if the engine writes no result.

    A calculation joins two or more numbers with any of + - * /. A calculation begins after a word, a punctuation mark,
    an equals sign or a line break, and ends with `=`.

    >>> calculate("First, 12 + 3 * 2 =")
    ' 18'
    """
    found = CALCULATION.search(text, max(0, len(text) - LONGEST))
    if found is None or not PRECEDES.search(text[: found.start()]):
        return ""
    value = _evaluate_calculation(found.group())
    written = "" if value is None else _format_decimal(value)
    return " " + written if written and text[-2].isspace() else written


def _evaluate_calculation(calculation: str) -> Fraction | None:
    """Return the value of a calculation without brackets, or None for a division by zero."""
    first, *rest = re.findall(rf"{NUMBER}|[{OPERATORS}]", calculation)
    terms = [_number(first)]
    for sign, text in zip(rest[::2], rest[1::2], strict=True):
        number = _number(text)
        if sign in "/÷":
            if not number:
                return None
            terms[-1] /= number
        elif sign in "*×":
            terms[-1] *= number
        else:
            terms.append(number if sign == "+" else -number)
    return sum(terms, Fraction(0))


def _number(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _format_decimal(value: Fraction) -> str:
    """Return a number as a decimal fraction, or "" if the number has more than `PLACES` decimal places."""
    scaled = value * 10**PLACES
    if scaled.denominator != 1:
        return ""
    sign, digits = "-" if scaled < 0 else "", f"{abs(int(scaled)):0{PLACES + 1}d}"
    return f"{sign}{digits[:-PLACES]}.{digits[-PLACES:]}".rstrip("0").rstrip(".")


class CalculatorConstraint:
    """A wrapper of a constraint that also writes the result of each calculation, if the wrapped constraint allows the
    result."""

    def __init__(self, constraint: Constraint, tokenizer: Tokenizer, masks: VocabularyMasks) -> None:
        self._constraint, self._tokenizer, self._masks = constraint, tokenizer, masks
        self._reply: tuple[int, ...] = ()  # its last tokens
        self._result: Sequence[int] = ()  # the tokens of the result that are not written yet
        self._ends = False  # whether a result has just ended, so that no further digit may follow

    def mask(self) -> Bools | None:
        allowed = self._constraint.mask()
        if self._result and (allowed is None or allowed[self._result[0]]):
            return self._masks.only_token(self._result[0])
        if self._ends:
            further = (
                self._masks.not_starting_with_digit
                if allowed is None
                else allowed & self._masks.not_starting_with_digit
            )
            return further if further.any() else allowed
        return allowed

    def accept(self, token: int) -> None:
        self._constraint.accept(token)
        self._reply = (*self._reply, token)[-WINDOW:]
        was = self._result
        self._result = was[1:] if was and token == was[0] else ()
        self._ends = [*was] == [token]
        if not self._masks.usable[token]:
            self._reply = ()  # a calculation cannot continue across `</think>`
        elif not was and self._masks.decode((token,)).endswith("="):
            text = self._masks.decode(self._reply)
            if written := calculate(text):
                self._result = self._result_token_ids(text[-2:], written)

    def _result_token_ids(self, before: str, written: str) -> Sequence[int]:
        """Tokenize the result `written` as the tokenizer would split it directly after the text `before`."""
        head, whole = (self._tokenizer.encode(f"1{text}") for text in (before, before + written))
        return whole[len(head) :] if whole[: len(head)] == head else self._tokenizer.encode(written)

    @property
    def done(self) -> bool:
        return self._constraint.done

    @property
    def error(self) -> str:
        return self._constraint.error

    @property
    def validation(self) -> Future[str] | None:
        return self._constraint.validation
