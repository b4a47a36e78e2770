"""MATH-500: competition mathematics (Hendrycks et al., 2021; the 500 problems of Lightman et al., 2023)."""

from __future__ import annotations

from pathlib import Path

from rorqual.core.errors import DataError
from rorqual.core.rows import DataRow, read_rows
from rorqual.tasks.answer import final_answer, math_equal, math_verify
from rorqual.tasks.base import Problem, Split, Verdict
from rorqual.tasks.rows import SAMPLES, FileTask, files, normal


class Math500(FileTask):
    """MATH-500 problems for evaluation, from rows with `problem`, `answer` (LaTeX), `solution`, `subject` and `level`.

    A reply is right if its final expression (see `rorqual.tasks.reply` and `expressions`) equals the gold answer:

    - In `a = b = c` the last side counts. In `a \\approx 0.3` the left side counts. A chain of different constants (`3 = 4`) is wrong.
    - Sets and lists match in any order. Tuples and intervals match in order and with the same brackets. A set never equals a tuple.
    - An inequality in one variable is an interval: `2 \\le x < 5` is `[2, 5)`. `x < 2 or x > 3` is a union of intervals.
    - A number in base 8 equals only the same digits in base 8. If a reply gives the right digits without a base, it is
      ungraded. "315 in base eight" and "in octal: 315" are supported. Units are compared only if reply and gold answer
      both have units.
    - If a reply states a count and the items ("5 such integers, namely ..."), the form of the gold answer decides which of
      the two is compared.
      "1 in 4", "5 out of 8", "a ratio of 1:4" and "11 times the square root of 2" are supported.
    - Decimals are exact: 0.333333 is not 1/3, and 3.14 is not pi. If the gold answer is a word or a letter, the reply must
      assert it, not deny it.
    - If two values look equally final and one is right, the reply is ungraded.
      Examples of two final values: "the center is $(3, -2)$ and the radius is $5$", `x = 5, y = 7`.
    - A reply with the right parts in another form is ungraded if only the question can tell whether that form is allowed.
      Examples of another form: `A = 6, B = 31` for `(6, 31)`, or a tuple for a column vector.
      A reply in unsupported notation (`\\setminus`) is ungraded.
    - An otherwise wrong reply without an answer marker is ungraded if its last sentence also states the gold answer
      (rule 8 of `reply`).
    - math-verify compares all answers except single numbers and words. A second comparison checks 25 digits, because
      math-verify rounds to 6 digits.

    `data` is one file, or a folder with a file `*test*.jsonl`. If `data` is None, the packaged sample is used.
    If the gold answer does not parse, every reply is ungraded.
    Raises DataError for any split but test: these problems are for evaluation.
    """

    name = "math500"

    def __init__(self, data: Path | None = None, timeout: int = 5) -> None:
        super().__init__(data or SAMPLES / "math500")
        math_verify()  # if math-verify is missing, raise before anything is generated
        self.timeout = timeout

    def load(self, split: Split) -> list[Problem]:
        if split != "test":
            raise DataError(
                f"MATH-500 has no split '{split}': it is for evaluation only",
                where=str(self.data),
                remedy="Use split=test, or train on another task.",
            )
        return [self._problem(row) for path in files(self.data, "test") for row in read_rows(path)]

    def _problem(self, row: DataRow) -> Problem:
        return Problem(
            key=f"math500 {normal(row.get('problem'))}",
            prompt=row.get("problem"),
            answer=row.get("answer"),
            family=row.get("subject") if "subject" in row.values else "math500",
            level=str(row.values.get("level", "")),
            steps=row.values.get("solution"),
            meta={"where": row.where},
        )

    def canonical_answer(self, problem: Problem, reply: str) -> str | None:
        """See `Task.canonical_answer`. Formulas are compared as text, so 1/2 and 0.5 are different votes."""
        return "".join(final_answer(reply).split()) or None

    def grade(self, problem: Problem, reply: str) -> Verdict:
        return math_equal(problem.answer, reply, timeout=self.timeout)
