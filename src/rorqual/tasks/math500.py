"""MATH-500: competition mathematics (Hendrycks et al., 2021; the 500 problems of Lightman et al., 2023)."""

from __future__ import annotations

from pathlib import Path

from rorqual.core.errors import DataError
from rorqual.tasks.answer import math_equal
from rorqual.tasks.base import Problem, Split, Verdict
from rorqual.tasks.rows import SAMPLES, DataRow, FileTask, files, normal, read


class Math500(FileTask):
    """Rows `problem`, `answer` (LaTeX), `solution`, `subject`, `level`; graded by math-verify. For evaluation only.

    A reply is right where what it commits to (see `rorqual.tasks.reply` and `expressions`) equals the gold answer:

    - Of `a = b = c` the last side counts, of `a \\approx 0.3` the left one; sides that are different constants (`3 = 4`) are wrong.
    - Sets and lists are compared in any order, tuples and intervals in order and with the same brackets; a set is no tuple.
    - Inequalities in one letter are intervals: `2 \\le x < 5` is `[2, 5)`, and `x < 2` or `x > 3` is a union.
    - A number in base 8 equals the same digits in base 8 alone; "315 in base eight" and "in octal: 315" are read, and the digits without
      a base are ungraded. Units are left out, unless both have one and the two differ.
    - Of a count and what it counts ("5 such integers, namely ...") the one counts that is of the gold answer's kind. "1 in 4", "5 out of
      8", "a ratio of 1:4" and "11 times the square root of 2" are read.
    - Decimals are exact: 0.333333 is not 1/3, and 3.14 is not pi. A gold answer in words, or a letter, must be asserted, not denied.
    - Where two values look final alike ("the center is $(3, -2)$ and the radius is $5$", `x = 5, y = 7`) and one is right, the reply is
      ungraded, and so is one with the right parts in a form that only the question can confirm (`A = 6, B = 31` for `(6, 31)`, a tuple
      for a column) or in a notation that is not read (`\\setminus`).
    - It is ungraded, too, where it has no mark and its last sentence states the gold answer beside what is taken (rule 8 of `reply`).
    - What is left is compared by math-verify, and then to 25 digits.

    `data` is a folder with a file `*test*.jsonl`, or one file; None is the sample of the package. A gold answer that does not
    parse is ungraded. A split other than test is a `DataError`: nothing is trained on or chosen by these problems.
    """

    name = "math500"

    def __init__(self, data: Path | None = None, timeout: int = 5) -> None:
        super().__init__(data or SAMPLES / "math500")
        self.timeout = timeout

    def load(self, split: Split) -> list[Problem]:
        if split != "test":
            raise DataError(
                f"MATH-500 has no split '{split}': it is for evaluation",
                where=str(self.data),
                remedy="Take split=test, or another task to learn from.",
            )
        return [self._problem(row) for path in files(self.data, "test") for row in read(path)]

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

    def grade(self, problem: Problem, reply: str) -> Verdict:
        return math_equal(problem.answer, reply, timeout=self.timeout)
